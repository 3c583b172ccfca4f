"""Runs in a real SLURM: time limits, preemption, signals, cancelling, arrays, requeueing.

Jobs that must reach their time limit are submitted first, and run beside the other tests.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.rundir.paths import RunDir
from tests.e2e.hosts.slurm_cluster import KILL_WAIT_SECONDS, PROCESSORS, Cluster, why_unavailable
from tests.e2e.support import (
    TRAIN,
    assert_all_valid,
    assert_same_result,
    clean_environment,
    events,
    forked_by,
    orchestrator,
    wait_for,
)

EXAMPLES = Path(__file__).parents[3] / "examples" / "slurm"
GRACE = "15s"
SHORT = ("--epochs", "2")
ENDLESS = ("--epochs", "10000", "--step-seconds", "0.1")
WORKERS = ("--workers", "2")
# The pace of jobs that only wait for their limit.
RARELY = ("--step-seconds", "0.5")
# SLURM checks limits twice a minute, and the machine may be busy.
JOB_SECONDS = 150.0

pytestmark = [pytest.mark.processes, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if (reason := why_unavailable()) is not None:
        if os.environ.get("REQUIRE_HOSTS"):
            pytest.fail(reason)
        pytest.skip(reason)
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    cluster = Cluster(root / "slurm", submit_limited)
    cluster.join()
    yield cluster
    cluster.leave()


class Job:
    """A SLURM job that trains in its own directory."""

    def __init__(self, cluster: Cluster, directory: Path, number: str, run: str = "train") -> None:
        self._cluster = cluster
        self.number = number
        self.run = RunDir(directory / "runs" / run)
        self._output = directory / f"slurm-{number}.out"

    def events(self, kind: str) -> list[dict[str, Any]]:
        return events(self.run, kind)

    def wait_for_event(self, kind: str, count: int = 1) -> dict[str, Any]:
        def found() -> bool:
            return len(self.events(kind)) >= count

        try:
            wait_for(found, f"{count} times {kind}", JOB_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.output()}") from None
        return self.events(kind)[-1]

    def wait_for_state(self, *states: str) -> dict[str, str]:
        """Wait until the job is in one of the states, and return what SLURM says of it."""

        def found() -> dict[str, str] | None:
            job = self._cluster.job(self.number)
            return job if job.get("JobState") in states else None

        try:
            return wait_for(found, " or ".join(states), JOB_SECONDS) or {}
        except AssertionError as error:
            job = self._cluster.job(self.number)
            raise AssertionError(f"{error}: {job}: {self.output()}") from None

    def output(self) -> str:
        return self._output.read_text() if self._output.exists() else "no output"

    def signal(self, *words: str) -> None:
        self._cluster.ask("scancel", *words, self.number)

    def wait_until_training(self, attempt: int = 1) -> None:
        """Wait until the attempt has something to save."""
        self.wait_for_event("attempt_started", attempt)
        self.wait_for_event(
            "checkpoint_published" if attempt == 1 else "resumed", max(1, attempt - 1)
        )


def environment() -> dict[str, str]:
    """Return the environment of a user who has activated the virtual environment."""
    cleaned = clean_environment()
    scripts = Path(sys.executable).parent
    return cleaned | {"PATH": f"{scripts}:{cleaned['PATH']}"}


def write_train(
    directory: Path,
    *arguments: str,
    warm: Path | None = None,
    slow_attempts: int = 0,
    grace: str = GRACE,
) -> None:
    """Write a train.py that trains with these arguments, whatever its own are, and the settings.

    The first ``slow_attempts`` attempts take seconds for each step, so that a test can end them.
    With the address of a ``warm`` server the trainers are forked from it.
    """
    directory.mkdir(exist_ok=True)
    (directory / "orchestrator.toml").write_text(f"grace = '{grace}'\n")
    fork = ""
    if warm is not None:
        fork = (
            "if 'WARM' not in os.environ:\n"
            "    os.environ['WARM'] = 'yes'\n"
            f"    os.execv(sys.executable, [*{forked_by(warm)}, __file__])\n"
        )
    (directory / "train.py").write_text(
        f"import os, runpy, sys\n{fork}"
        f"sys.argv = {[str(TRAIN), *arguments]}\n"
        f"if int(os.environ['ORCHESTRATOR_ATTEMPT']) <= {slow_attempts}:\n"
        "    sys.argv += ['--step-seconds', '2']\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )


def submit(cluster: Cluster, directory: Path, script: Path, *sbatch: str) -> str:
    return cluster.submit(directory, environment(), *sbatch, str(script))


def write_script(directory: Path, *lines: str) -> Path:
    """Write a user's own batch script."""
    script = directory / "job.sh"
    script.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    return script


def generate_script(directory: Path, *arguments: str) -> Path:
    """Write the batch script that `orchestrator slurm-script` prints."""
    result = orchestrator(
        "slurm-script", *arguments, "--", sys.executable, "train.py", cwd=directory
    )
    assert result.returncode == 0, result.stderr
    script = directory / "job.sh"
    script.write_text(result.stdout)
    return script


# --- limits -------------------------------------------------------------------------------------


COMPLETE_WHEN_QUEUED_AGAIN = """import os
if os.environ["ORCHESTRATOR_ATTEMPT"] == "2":
    raise SystemExit
"""


def submit_limited(cluster: Cluster) -> dict[str, Any]:
    """Submit the jobs that reach a time limit, in directories beside the cluster's own."""
    root = cluster.root.parent
    directories = {n: root / f"slurm-{n}" for n in ("silent", "noticed", "inside", "late")}
    for directory in directories.values():
        write_train(directory, *ENDLESS, *WORKERS, *RARELY)
        script = directory / "train.py"
        script.write_text(f"{COMPLETE_WHEN_QUEUED_AGAIN}{script.read_text()}")
    run = "orchestrator run --run-dir runs/train --slurm-requeue -- python train.py"
    blind = f"PATH=/nowhere {sys.executable} -m {run.replace('python', sys.executable)}"
    append = "#SBATCH --open-mode=append"
    scripts = {
        "silent": write_script(directories["silent"], append, f"exec {run}"),
        "noticed": generate_script(
            directories["noticed"],
            *("--sbatch", "time=2", "--sbatch", "signal=B:USR1@90", "--sbatch", "no-requeue"),
            *("--no-slurm-requeue", "--grace", GRACE),
        ),
        # As in a container: docs/how-to/slurm.md.
        "inside": write_script(
            directories["inside"],
            append,
            "#SBATCH --signal=USR1@30",
            f"srun env {blind}",
            "status=$?",
            'if [ -e runs/train/requeue.json ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
            'exit "$status"',
        ),
        "late": write_script(directories["late"], append, f"exec /usr/bin/env {blind}"),
    }
    return {
        name: (
            str(directory),
            # The generated script has its own limit.
            submit(cluster, directory, scripts[name], *([] if name == "noticed" else ["--time=1"])),
        )
        for name, directory in directories.items()
    }


def limited(cluster: Cluster, name: str) -> Job:
    directory, number = cluster.prepared[name]
    return Job(cluster, Path(directory), number)


def test_job_is_requeued_until_it_is_complete(
    cluster: Cluster, warm_server: Path, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    """A job that gets stop signals is requeued each time, and ends with the undisturbed result."""
    arguments = (*SHORT, *WORKERS)
    result = ("--result", str(tmp_path / "result.pt"))
    write_train(tmp_path, *arguments, *result, warm=warm_server, slow_attempts=2)
    job = Job(cluster, tmp_path, submit(cluster, tmp_path, EXAMPLES / "single.sh"))
    ends = (("--batch", "--signal=USR1"), ("--full", "--signal=TERM"))
    for slice_, end in enumerate(ends, start=1):
        job.wait_until_training(slice_)
        job.signal(*end)
        job.wait_for_event("requeued", slice_)
    ended = job.wait_for_state("COMPLETED")
    assert ended["Restarts"] == "2"
    assert [event["status"] for event in job.events("run_stopped")] == [75, 75]
    assert len(job.events("run_completed")) == 1
    assert len(job.events("requeued")) == 2
    assert [event["exactness"] for event in job.events("resumed")] == ["EXACT", "EXACT"]
    assert job.output().count("begins at step") == 3
    assert_all_valid(job.run)
    assert_same_result(tmp_path / "result.pt", uninterrupted(*arguments))


def test_preempted_array_task_is_requeued_alone(
    cluster: Cluster, warm_server: Path, tmp_path: Path
) -> None:
    """A preempted task of an array is requeued and continues; the other task is not touched."""
    write_train(tmp_path, *SHORT, warm=warm_server, slow_attempts=1)
    number = submit(cluster, tmp_path, EXAMPLES / "array.sh", "--array=0-1")
    first, second = (Job(cluster, tmp_path, f"{number}_{n}", f"train-{n}") for n in range(2))
    first.wait_until_training()
    second.wait_until_training()
    first.signal("--batch", "--signal=USR1")
    assert first.wait_for_event("requeued")["job"] == f"{number}_0"
    assert first.wait_for_state("COMPLETED")["Restarts"] == "1"
    # It is still in its first job.
    assert second.events("stop_requested") == []
    assert cluster.job(second.number)["Restarts"] == "0"
    second.signal()


def test_preempted_job_saves_and_completes_later(
    cluster: Cluster, warm_server: Path, tmp_path: Path
) -> None:
    """A job of a higher partition preempts the job, which saves, is requeued and completes."""
    write_train(tmp_path, *SHORT, warm=warm_server, slow_attempts=1)
    most = f"--cpus-per-task={PROCESSORS * 3 // 4}"
    job = Job(cluster, tmp_path, submit(cluster, tmp_path, EXAMPLES / "preemptible.sh", most))
    job.wait_until_training()
    other = write_script(tmp_path, "exec sleep 1")
    urgent = Job(cluster, tmp_path, submit(cluster, tmp_path, other, most, "--partition=urgent"))
    job.wait_for_event("requeued")
    assert job.events("stop_requested")[0]["source"] == "SIGUSR1"
    assert job.events("run_stopped")[0]["status"] == 75
    urgent.wait_for_state("COMPLETED")
    assert job.wait_for_state("COMPLETED")["Restarts"] == "1"
    assert len(job.events("requeued")) == 1


def test_cancelled_job_saves_and_is_not_requeued(cluster: Cluster, tmp_path: Path) -> None:
    """SIGUSR2 to all processes saves and training continues; scancel saves without a requeue."""
    write_train(tmp_path, *ENDLESS, *WORKERS)
    too_long = f"{KILL_WAIT_SECONDS + 5}s"
    script = generate_script(tmp_path, "--sbatch", "time=60", "--grace", too_long)
    job = Job(cluster, tmp_path, submit(cluster, tmp_path, script))
    job.wait_until_training()
    job.signal("--full", "--signal=USR2")
    assert job.wait_for_event("checkpoint_published", 2)["reason"] == "requested"
    assert job.events("stop_requested") == []
    assert f"set --grace {KILL_WAIT_SECONDS}s" in job.output()
    job.signal()
    assert job.wait_for_state("CANCELLED")["Restarts"] == "0"
    assert job.events("run_stopped")[0]["status"] == 75
    assert job.events("requeued") == []
    assert_all_valid(job.run)


def test_signal_to_the_steps_saves_and_the_exit_status_requeues(
    cluster: Cluster, warm_server: Path, tmp_path: Path
) -> None:
    """SIGTERM to the job steps saves, and RequeueExit requeues the job for status 75."""
    write_train(tmp_path, *SHORT, warm=warm_server, slow_attempts=1)
    script = write_script(
        tmp_path,
        "#SBATCH --open-mode=append",
        "exec srun --ntasks=1 orchestrator run --run-dir runs/train -- python train.py",
    )
    job = Job(cluster, tmp_path, submit(cluster, tmp_path, script))
    job.wait_until_training()
    job.signal("--signal=TERM")
    assert job.wait_for_event("run_stopped")["status"] == 75
    assert job.wait_for_state("COMPLETED")["Restarts"] == "1"
    assert job.events("requeued") == []


FAILS_BUT_ONCE = """import os
if os.environ['ORCHESTRATOR_ATTEMPT'] != '2':
    raise ValueError('a bug')
time.sleep(300)
"""


def test_failure_before_a_requeue_counts_and_a_failed_job_is_not_requeued(
    cluster: Cluster, warm_server: Path, tmp_path: Path
) -> None:
    """A failure from before the requeue counts after it, so the second one like it is the last."""
    fails = ("--run-at", "2", "--code", FAILS_BUT_ONCE)
    write_train(tmp_path, *SHORT, *fails, warm=warm_server, grace="3s")
    job = Job(cluster, tmp_path, submit(cluster, tmp_path, EXAMPLES / "single.sh"))
    job.wait_for_event("resumed")
    job.signal("--batch", "--signal=USR1")
    job.wait_for_event("requeued")
    ended = job.wait_for_state("FAILED")
    assert (ended["Restarts"], ended["ExitCode"]) == ("1", "70:0")
    # With no memory of the first failure the third attempt's would be retried.
    decisions = [event["decision"] for event in job.events("attempt_exited")]
    assert decisions == ["retry", "stop", "demote", "give_up"]
    assert len(job.events("requeued")) == 1


def test_run_stops_before_the_time_limit_without_a_signal(cluster: Cluster) -> None:
    """Without --signal the run stops before the time limit, and is requeued."""
    job = limited(cluster, "silent")
    job.wait_for_event("requeued")
    assert job.events("stop_requested")[0]["source"] == f"the end of SLURM job {job.number}"
    assert job.events("run_stopped")[0]["status"] == 75
    assert job.wait_for_state("COMPLETED")["Restarts"] == "1"


def test_run_stops_on_the_signal_before_the_time_limit(cluster: Cluster) -> None:
    """With --signal the run saves on the signal, and is requeued for its exit status."""
    job = limited(cluster, "noticed")
    assert job.wait_for_state("COMPLETED")["Restarts"] == "1"
    assert job.events("stop_requested")[0]["source"] == "SIGUSR1"
    assert job.events("run_stopped")[0]["status"] == 75
    assert job.events("requeued") == []


def test_batch_script_requeues_without_scontrol(cluster: Cluster) -> None:
    """Without scontrol a signal saves, and the marker makes the batch script requeue the job."""
    job = limited(cluster, "inside")
    failed = job.wait_for_event("requeued")
    assert failed["job"] == job.number
    assert "cannot run scontrol" in failed["problem"]
    assert job.events("stop_requested")[0]["source"].startswith("SIGUSR1")
    assert job.events("run_stopped")[0]["status"] == 75
    assert job.wait_for_state("COMPLETED")["Restarts"] == "1"
    assert not job.run.requeue_file.exists()


def test_run_saves_on_sigterm_at_the_time_limit(cluster: Cluster) -> None:
    """SIGTERM to all processes at the limit saves, with loader workers too, and 75 requeues."""
    job = limited(cluster, "late")
    assert job.wait_for_state("COMPLETED")["Restarts"] == "1"
    assert job.events("stop_requested")[0]["source"].startswith("SIGTERM")
    assert job.events("run_stopped")[0]["status"] == 75
    assert_all_valid(job.run)
