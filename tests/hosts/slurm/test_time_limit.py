"""The end of a job is polled; a requeue is requested once or not at all."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.config import Config
from orchestrator.exitcodes import ExitStatus
from orchestrator.hosts.host_events import HostEvents
from orchestrator.hosts.slurm.job import Job
from orchestrator.hosts.slurm.time_limit import SlurmJobMonitor
from orchestrator.rundir.journal import Journal
from orchestrator.rundir.paths import RunDir
from orchestrator.system.subprocesses import SubprocessRunner
from tests.support import wait_until

GRACE_SECONDS = 0.5
POLL_SECONDS = 0.05
FAR_SECONDS = 100_000

# Prints the answers that a test has written, and records its arguments.
SCONTROL = """#!/bin/bash
echo "$*" >> {directory}/calls
if [ "$1" = requeue ]; then cat {directory}/refusal >&2 && exit 1; fi
case "$*" in *"show job"*) cat {directory}/job;; *config*) echo "KillWait = 30 sec";; esac
exit 0
"""


class Controller:
    """A scontrol program whose answers the test sets."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        program = directory / "scontrol"
        program.write_text(SCONTROL.format(directory=directory))
        program.chmod(0o755)
        self.set_job(FAR_SECONDS)

    def set_job(self, seconds_left: float, state: str = "RUNNING", **words: str) -> None:
        end = time.time() + seconds_left
        times = {
            "StartTime": int(end) - FAR_SECONDS,
            "EndTime": int(end),
            "PreemptTime": "None",
        }
        facts = {"JobState": state, "Restarts": 1, **times, **words}
        text = " ".join(f"{key}={value}" for key, value in facts.items())
        new = self._directory / "job.new"
        new.write_text(f"JobId=7 {text} Partition=main\n")
        new.replace(self._directory / "job")

    def refuse_requeue(self, text: str) -> None:
        (self._directory / "refusal").write_text(text)

    def count_calls(self, words: str) -> int:
        file = self._directory / "calls"
        return file.read_text().count(words) if file.exists() else 0


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Controller:
    monkeypatch.setattr("orchestrator.hosts.slurm.margins.CONTROLLER_SECONDS", 0.5)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return Controller(tmp_path)


def make_monitor(
    request_stop: Callable[[str], None], known_end: int | None = None
) -> SlurmJobMonitor:
    """Return the monitor of a job that has been requeued once."""
    return SlurmJobMonitor(
        Job("7", 1, known_end),
        SubprocessRunner(),
        GRACE_SECONDS,
        lambda: 0.0,
        request_stop,
        POLL_SECONDS,
    )


def watch(body: Callable[[list[str]], None], known_end: int | None = None) -> list[str]:
    """Return the stops that a watched job requests; ``body`` runs beside it, in a thread."""
    stops: list[str] = []

    async def main() -> None:
        watching = asyncio.ensure_future(make_monitor(stops.append, known_end).watch())
        await asyncio.to_thread(body, stops)
        watching.cancel()

    asyncio.run(main())
    return stops


def test_changed_time_limit_is_respected(controller: Controller) -> None:
    """The stop is requested when the current end is near, wherever the end was before."""

    def body(stops: list[str]) -> None:
        wait_until(lambda: controller.count_calls("show job") > 3, "questions")
        assert stops == []
        controller.set_job(1.0)
        wait_until(lambda: bool(stops), "a stop")

    assert watch(body) == ["the end of SLURM job 7"]


def test_preemption_is_noticed_without_a_signal(controller: Controller) -> None:
    """A job that is about to be preempted stops at once, whatever its grace time."""

    def body(stops: list[str]) -> None:
        wait_until(lambda: controller.count_calls("show job") > 1, "questions")
        controller.set_job(FAR_SECONDS, PreemptTime=str(int(time.time())))
        wait_until(lambda: bool(stops), "a stop")

    assert watch(body) == ["the preemption of SLURM job 7"]


def test_last_known_end_counts_without_an_answer(controller: Controller, tmp_path: Path) -> None:
    """The last known end counts when the controller stops answering."""
    controller.set_job(4.0)

    def body(stops: list[str]) -> None:
        wait_until(lambda: controller.count_calls("config") > 0, "a question")
        (tmp_path / "job").unlink()
        wait_until(lambda: bool(stops), "a stop")

    assert watch(body) == ["the end of SLURM job 7"]


def test_end_in_the_environment_counts_without_scontrol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without scontrol the end in the environment counts."""
    monkeypatch.setenv("PATH", str(tmp_path))
    stops = watch(
        lambda stops: wait_until(lambda: bool(stops), "a stop"), known_end=int(time.time()) + 1
    )
    assert stops == ["the end of SLURM job 7"]


def requeue(directory: Path) -> tuple[RunDir, list[dict[str, object]]]:
    run = RunDir(directory / "run")
    run.create()
    journal = Journal(run.journal_file)
    asyncio.run(make_monitor(lambda source: None).requeue(run, journal))
    return run, journal.read()[0]


def test_requeue_is_requested_once_and_recorded(controller: Controller, tmp_path: Path) -> None:
    """Scontrol is asked once, and the journal has the event."""
    run, events = requeue(tmp_path)
    assert controller.count_calls("requeue 7") == 1
    assert [(event["event"], event["job"]) for event in events] == [("requeued", "7")]
    assert not run.requeue_file.exists()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("COMPLETING", {"Reason": "None"}),
        ("CANCELLED", {"Reason": "None"}),
        # SLURM has requeued it: the count is above the job's own.
        ("COMPLETING", {"Reason": "TimeLimit", "Restarts": "2"}),
    ],
)
def test_cancelled_or_requeued_job_is_not_requeued(
    controller: Controller, tmp_path: Path, state: str, words: dict[str, str]
) -> None:
    """A job that was cancelled, or that SLURM has requeued itself, is not requeued."""
    controller.set_job(FAR_SECONDS, state, **words)
    run, events = requeue(tmp_path)
    assert controller.count_calls("requeue") == 0
    assert events == []
    assert not run.requeue_file.exists()


def test_job_at_its_time_limit_is_requeued(controller: Controller, tmp_path: Path) -> None:
    """A job that ends for its time limit is requeued."""
    controller.set_job(0, "COMPLETING", Reason="TimeLimit")
    requeue(tmp_path)
    assert controller.count_calls("requeue 7") == 1


def test_refused_requeue_writes_a_marker(controller: Controller, tmp_path: Path) -> None:
    """The marker names the job and contains scontrol's message."""
    controller.refuse_requeue("Requested operation is presently disabled for job 7\n")
    run, events = requeue(tmp_path)
    marker = json.loads(run.requeue_file.read_text())
    assert marker["job"] == "7"
    assert "presently disabled" in marker["problem"]
    assert "presently disabled" in str(events[0]["problem"])


@pytest.mark.parametrize(
    ("status", "source", "requeues"),
    [
        (ExitStatus.STOPPED_SAVED, "SIGUSR1", True),
        (ExitStatus.STOPPED_SAVED, "the end of SLURM job 7", True),
        (ExitStatus.STOPPED_UNSAVED, "SIGTERM to the trainer", True),
        # Broken hardware: no stop was requested.
        (ExitStatus.STOPPED_SAVED, None, True),
        (ExitStatus.STOPPED_SAVED, "orchestrator stop", False),
        (ExitStatus.STOPPED_SAVED, "SIGINT", False),
        (ExitStatus.STOPPED_SAVED, "SIGHUP", False),
        (ExitStatus.COMPLETE, None, False),
        # A stop that was requested meanwhile does not matter.
        (ExitStatus.COMPLETE, "SIGUSR1", False),
        (ExitStatus.GAVE_UP, "SIGUSR1", False),
        (ExitStatus.NO_VALID_CHECKPOINT, None, False),
    ],
)
@pytest.mark.parametrize("wanted", [True, False])
def test_only_stops_that_no_person_requested_are_requeued(
    controller: Controller,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: ExitStatus,
    source: str | None,
    requeues: bool,
    wanted: bool,
) -> None:
    """With --slurm-requeue a stop is requeued, unless a person requested it."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run = RunDir(tmp_path / "run")
    run.create()
    journal = Journal(run.journal_file)
    config = Config(slurm_requeue=wanted)
    host_events = HostEvents(config, run, journal, lambda: 0.0, lambda source: None)
    asyncio.run(host_events.finish(status, source))
    assert controller.count_calls("requeue 7") == (wanted and requeues)
