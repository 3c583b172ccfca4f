"""In a real SLURM: limits, preemption, signals, cancelling, arrays, queueing again.

Jobs whose limit has to be waited for are submitted first, and run while the others are tested.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.rundir.paths import RunDir
from tests.e2e.hosts.slurm_cluster import KILL_WAIT_SECONDS, PROCESSORS, Cluster, why_not
from tests.e2e.support import (
    TRAIN,
    assert_all_valid,
    assert_same_result,
    clean_environment,
    events,
    orchestrator,
    wait_for,
)

EXAMPLES = Path(__file__).parents[3] / "examples" / "slurm"
GRACE = "15s"
SHORT = ("--epochs", "2")
ENDLESS = ("--epochs", "10000", "--step-seconds", "0.1")
WORKERS = ("--workers", "2")
# Steps of jobs that only wait for their limit.
RARELY = ("--step-seconds", "0.5")
# A limit is looked at twice a minute, and the machine does other things too.
JOB_SECONDS = 150.0

pytestmark = [pytest.mark.processes, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if (reason := why_not()) is not None:
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
    """A job that trains, in a directory of its own."""

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
        """What SLURM says of the job once it is in one of these states."""

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

    def wait_until_it_trains(self, attempt: int = 1) -> None:
        """In this attempt, so far that a stop has something to save."""
        self.wait_for_event("attempt_started", attempt)
        self.wait_for_event(
            "checkpoint_published" if attempt == 1 else "resumed", max(1, attempt - 1)
        )


def environment() -> dict[str, str]:
    """What somebody has who has activated the virtual environment."""
    cleaned = clean_environment()
    scripts = Path(sys.executable).parent
    return cleaned | {"PATH": f"{scripts}:{cleaned['PATH']}"}


def write_train(
    directory: Path, *arguments: str, slow_attempts: int = 0, grace: str = GRACE
) -> None:
    """train.py, which trains with these arguments whatever its own are, and the settings.

    So many attempts take seconds for each step, in which somebody can end them.
    """
    directory.mkdir(exist_ok=True)
    (directory / "orchestrator.toml").write_text(f"grace = '{grace}'\n")
    (directory / "train.py").write_text(
        "import os, runpy, sys\n"
        f"sys.argv = {[str(TRAIN), *arguments]}\n"
        f"if int(os.environ['ORCHESTRATOR_ATTEMPT']) <= {slow_attempts}:\n"
        "    sys.argv += ['--step-seconds', '2']\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )


def submit(cluster: Cluster, directory: Path, script: Path, *sbatch: str) -> str:
    return cluster.submit(directory, environment(), *sbatch, str(script))


def write_script(directory: Path, *lines: str) -> Path:
    """A batch script of the user's own."""
    script = directory / "job.sh"
    script.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    return script


def generate_script(directory: Path, *arguments: str) -> Path:
    """What `orchestrator slurm-script` prints."""
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
    """The jobs that run into a limit, in directories beside the cluster's own."""
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


def uninterrupted(directory: Path, *arguments: str) -> Path:
    """The result of a run that nothing disturbed."""
    result = directory / "expected.pt"
    command = [sys.executable, str(TRAIN), *arguments, "--result", str(result)]
    subprocess.run(
        command,
        cwd=directory,
        env=clean_environment(),
        check=True,
        timeout=120,
        stdout=subprocess.DEVNULL,
    )
    return result


def test_job_goes_on_over_slices_until_it_is_complete(cluster: Cluster, tmp_path: Path) -> None:
    """Signalled in two ways, a job is queued again each time, and ends as if nothing had been."""
    arguments = (*SHORT, *WORKERS)
    result = ("--result", str(tmp_path / "result.pt"))
    write_train(tmp_path, *arguments, *result, slow_attempts=2)
    job = Job(cluster, tmp_path, submit(cluster, tmp_path, EXAMPLES / "single.sh"))
    ends = (("--batch", "--signal=USR1"), ("--full", "--signal=TERM"))
    for slice_, end in enumerate(ends, start=1):
        job.wait_until_it_trains(slice_)
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
    assert_same_result(tmp_path / "result.pt", uninterrupted(tmp_path, *arguments))


def test_one_task_of_an_array_is_queued_again(cluster: Cluster, tmp_path: Path) -> None:
    """A task of an array that is preempted goes on by itself; the other is left alone."""
    write_train(tmp_path, *SHORT, slow_attempts=1)
    number = submit(cluster, tmp_path, EXAMPLES / "array.sh", "--array=0-1")
    first, second = (Job(cluster, tmp_path, f"{number}_{n}", f"train-{n}") for n in range(2))
    first.wait_until_it_trains()
    second.wait_until_it_trains()
    first.signal("--batch", "--signal=USR1")
    assert first.wait_for_event("requeued")["job"] == f"{number}_0"
    assert first.wait_for_state("COMPLETED")["Restarts"] == "1"
    # It is still in its first life.
    assert second.events("stop_requested") == []
    assert cluster.job(second.number)["Restarts"] == "0"
    second.signal()


def test_preempted_job_gives_way_and_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    """A job of a higher partition gets the place; the preempted one has saved, and completes."""
    write_train(tmp_path, *SHORT, slow_attempts=1)
    most = f"--cpus-per-task={PROCESSORS * 3 // 4}"
    job = Job(cluster, tmp_path, submit(cluster, tmp_path, EXAMPLES / "preemptible.sh", most))
    job.wait_until_it_trains()
    other = write_script(tmp_path, "exec sleep 1")
    urgent = Job(cluster, tmp_path, submit(cluster, tmp_path, other, most, "--partition=urgent"))
    job.wait_for_event("requeued")
    assert job.events("stop_requested")[0]["source"] == "SIGUSR1"
    assert job.events("run_stopped")[0]["status"] == 75
    urgent.wait_for_state("COMPLETED")
    assert job.wait_for_state("COMPLETED")["Restarts"] == "1"
    assert len(job.events("requeued")) == 1


def test_cancelled_job_has_saved_and_stays_ended(cluster: Cluster, tmp_path: Path) -> None:
    """SIGUSR2 to everybody saves and training goes on; scancel saves, and nothing is requeued."""
    write_train(tmp_path, *ENDLESS, *WORKERS)
    too_long = f"{KILL_WAIT_SECONDS + 5}s"
    script = generate_script(tmp_path, "--sbatch", "time=60", "--grace", too_long)
    job = Job(cluster, tmp_path, submit(cluster, tmp_path, script))
    job.wait_until_it_trains()
    job.signal("--full", "--signal=USR2")
    assert job.wait_for_event("checkpoint_published", 2)["reason"] == "requested"
    assert job.events("stop_requested") == []
    assert f"set --grace {KILL_WAIT_SECONDS}s" in job.output()
    job.signal()
    assert job.wait_for_state("CANCELLED")["Restarts"] == "0"
    assert job.events("run_stopped")[0]["status"] == 75
    assert job.events("requeued") == []
    assert_all_valid(job.run)


def test_signal_to_the_steps_and_requeue_by_status(cluster: Cluster, tmp_path: Path) -> None:
    """SIGTERM to steps alone saves; status 75 has the cluster queue the job again (RequeueExit)."""
    write_train(tmp_path, *SHORT, slow_attempts=1)
    script = write_script(
        tmp_path,
        "#SBATCH --open-mode=append",
        "exec srun --ntasks=1 orchestrator run --run-dir runs/train -- python train.py",
    )
    job = Job(cluster, tmp_path, submit(cluster, tmp_path, script))
    job.wait_until_it_trains()
    job.signal("--signal=TERM")
    assert job.wait_for_event("run_stopped")["status"] == 75
    assert job.wait_for_state("COMPLETED")["Restarts"] == "1"
    assert job.events("requeued") == []


FAILS_BUT_ONCE = """import os
if os.environ['ORCHESTRATOR_ATTEMPT'] != '2':
    raise ValueError('a bug')
time.sleep(300)
"""


def test_history_survives_and_what_was_given_up_is_not_queued_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    """A failure from before the requeue counts after it: the second one like it is the last."""
    write_train(tmp_path, *SHORT, "--run-at", "2", "--code", FAILS_BUT_ONCE, grace="3s")
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


def test_stop_ahead_of_a_limit_without_a_signal(cluster: Cluster) -> None:
    """Without --signal the run stops ahead of the limit, and is queued again."""
    job = limited(cluster, "silent")
    job.wait_for_event("requeued")
    assert job.events("stop_requested")[0]["source"] == f"the end of SLURM job {job.number}"
    assert job.events("run_stopped")[0]["status"] == 75
    assert job.wait_for_state("COMPLETED")["Restarts"] == "1"


def test_limit_with_a_signal(cluster: Cluster) -> None:
    """With --signal the notice saves and stops; the job is requeued for its status alone."""
    job = limited(cluster, "noticed")
    assert job.wait_for_state("COMPLETED")["Restarts"] == "1"
    assert job.events("stop_requested")[0]["source"] == "SIGUSR1"
    assert job.events("run_stopped")[0]["status"] == 75
    assert job.events("requeued") == []


def test_limit_where_slurm_cannot_be_asked(cluster: Cluster) -> None:
    """Without scontrol, a signal to the steps saves, and a marker has the batch script requeue."""
    job = limited(cluster, "inside")
    failed = job.wait_for_event("requeued")
    assert failed["job"] == job.number
    assert "cannot run scontrol" in failed["problem"]
    assert job.events("stop_requested")[0]["source"].startswith("SIGUSR1")
    assert job.events("run_stopped")[0]["status"] == 75
    assert job.wait_for_state("COMPLETED")["Restarts"] == "1"
    assert not job.run.requeue_file.exists()


def test_limit_without_any_notice(cluster: Cluster) -> None:
    """SIGTERM to everybody at the limit still saves, loader workers or not, and 75 requeues."""
    job = limited(cluster, "late")
    assert job.wait_for_state("COMPLETED")["Restarts"] == "1"
    assert job.events("stop_requested")[0]["source"].startswith("SIGTERM")
    assert job.events("run_stopped")[0]["status"] == 75
    assert_all_valid(job.run)
