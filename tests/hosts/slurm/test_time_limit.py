"""A job's end is asked for again and again; queueing again is asked for once, or not at all."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.config import Config
from orchestrator.exitcodes import ExitStatus
from orchestrator.hosts.host_events import HostEvents
from orchestrator.hosts.slurm import time_limit
from orchestrator.hosts.slurm.job import Job
from orchestrator.hosts.slurm.time_limit import SlurmJob
from orchestrator.rundir.journal import Journal
from orchestrator.rundir.paths import RunDir
from orchestrator.system.subprocesses import SubprocessRunner
from tests.support import wait_until

GRACE_SECONDS = 0.5
FAR = 100_000

# Says what a test has written, and notes what it was asked.
SCONTROL = """#!/bin/bash
echo "$*" >> {directory}/asked
if [ "$1" = requeue ]; then cat {directory}/refusal >&2 && exit 1; fi
case "$*" in *"show job"*) cat {directory}/job;; *config*) echo "KillWait = 30 sec";; esac
exit 0
"""


class Controller:
    """What scontrol says."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        program = directory / "scontrol"
        program.write_text(SCONTROL.format(directory=directory))
        program.chmod(0o755)
        self.says(FAR)

    def says(self, seconds_left: float, state: str = "RUNNING", **words: str) -> None:
        end = time.time() + seconds_left
        times = {"StartTime": int(end) - FAR, "EndTime": int(end), "PreemptTime": "None"}
        facts = {"JobState": state, "Restarts": 1, **times, **words}
        text = " ".join(f"{key}={value}" for key, value in facts.items())
        new = self._directory / "job.new"
        new.write_text(f"JobId=7 {text} Partition=main\n")
        new.replace(self._directory / "job")

    def refuses(self, text: str) -> None:
        (self._directory / "refusal").write_text(text)

    def asked(self, words: str) -> int:
        file = self._directory / "asked"
        return file.read_text().count(words) if file.exists() else 0


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Controller:
    monkeypatch.setattr(time_limit, "ASK_SECONDS", 0.05)
    monkeypatch.setattr("orchestrator.hosts.slurm.margins.CONTROLLER_SECONDS", 0.5)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return Controller(tmp_path)


def make_job(request_stop: Callable[[str], None], known_end: int | None = None) -> SlurmJob:
    """One that was queued again once already."""
    return SlurmJob(
        Job("7", 1, known_end), SubprocessRunner(), GRACE_SECONDS, lambda: 0.0, request_stop
    )


def watch(body: Callable[[list[str]], None], known_end: int | None = None) -> list[str]:
    """What a watched job asks for; ``body`` is called beside it, in a thread, with the same."""
    stops: list[str] = []

    async def main() -> None:
        watching = asyncio.ensure_future(make_job(stops.append, known_end).watch())
        await asyncio.to_thread(body, stops)
        watching.cancel()

    asyncio.run(main())
    return stops


def test_a_limit_that_is_moved_is_heeded(controller: Controller) -> None:
    """No stop while the end is far, however near it has been; one when it has come near."""

    def body(stops: list[str]) -> None:
        wait_until(lambda: controller.asked("show job") > 3, "questions")
        assert stops == []
        controller.says(1.0)
        wait_until(lambda: bool(stops), "a stop")

    assert watch(body) == ["the end of SLURM job 7"]


def test_preemption_is_seen_without_a_signal(controller: Controller) -> None:
    """A job that is to be preempted stops at once, whatever its grace time is."""

    def body(stops: list[str]) -> None:
        wait_until(lambda: controller.asked("show job") > 1, "questions")
        controller.says(FAR, PreemptTime=str(int(time.time())))
        wait_until(lambda: bool(stops), "a stop")

    assert watch(body) == ["the preemption of SLURM job 7"]


def test_without_answer_the_last_one_stands(controller: Controller, tmp_path: Path) -> None:
    """A controller that answers no more does not move the end that it has told."""
    controller.says(4.0)

    def body(stops: list[str]) -> None:
        wait_until(lambda: controller.asked("config") > 0, "a question")
        (tmp_path / "job").unlink()
        wait_until(lambda: bool(stops), "a stop")

    assert watch(body) == ["the end of SLURM job 7"]


def test_end_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scontrol the end counts that newer versions put into the environment."""
    monkeypatch.setenv("PATH", str(tmp_path))
    stops = watch(
        lambda stops: wait_until(lambda: bool(stops), "a stop"), known_end=int(time.time()) + 1
    )
    assert stops == ["the end of SLURM job 7"]


def requeue(directory: Path) -> tuple[RunDir, list[dict[str, object]]]:
    run = RunDir(directory / "run")
    run.create()
    journal = Journal(run.journal_file)
    asyncio.run(make_job(lambda source: None).requeue(run, journal))
    return run, journal.read()[0]


def test_requeue(controller: Controller, tmp_path: Path) -> None:
    """The controller is asked once, and the journal has it."""
    run, events = requeue(tmp_path)
    assert controller.asked("requeue 7") == 1
    assert [(event["event"], event["job"]) for event in events] == [("requeued", "7")]
    assert not run.requeue_file.exists()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("COMPLETING", {"Reason": "None"}),
        ("CANCELLED", {"Reason": "None"}),
        # SLURM has done it: the count is above what this life began with.
        ("COMPLETING", {"Reason": "TimeLimit", "Restarts": "2"}),
    ],
)
def test_no_requeue(
    controller: Controller, tmp_path: Path, state: str, words: dict[str, str]
) -> None:
    """What somebody has cancelled, or SLURM queued again by itself, is left at that."""
    controller.says(FAR, state, **words)
    run, events = requeue(tmp_path)
    assert controller.asked("requeue") == 0
    assert events == []
    assert not run.requeue_file.exists()


def test_requeue_after_the_limit(controller: Controller, tmp_path: Path) -> None:
    """A job that its limit ends is queued again: that is the last moment for it."""
    controller.says(0, "COMPLETING", Reason="TimeLimit")
    requeue(tmp_path)
    assert controller.asked("requeue 7") == 1


def test_refused_requeue_leaves_a_marker(controller: Controller, tmp_path: Path) -> None:
    """The file says which job, and what scontrol said."""
    controller.refuses("Requested operation is presently disabled for job 7\n")
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
        # Broken hardware: nobody asked for the stop.
        (ExitStatus.STOPPED_SAVED, None, True),
        (ExitStatus.STOPPED_SAVED, "orchestrator stop", False),
        (ExitStatus.STOPPED_SAVED, "SIGINT", False),
        (ExitStatus.STOPPED_SAVED, "SIGHUP", False),
        (ExitStatus.COMPLETE, None, False),
        # Whatever was asked for meanwhile.
        (ExitStatus.COMPLETE, "SIGUSR1", False),
        (ExitStatus.GAVE_UP, "SIGUSR1", False),
        (ExitStatus.NO_VALID_CHECKPOINT, None, False),
    ],
)
@pytest.mark.parametrize("wanted", [True, False])
def test_which_ends_are_queued_again(
    controller: Controller,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: ExitStatus,
    source: str | None,
    requeues: bool,
    wanted: bool,
) -> None:
    """With --slurm-requeue a stop, unless a person asked for it; never what cannot go on."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run = RunDir(tmp_path / "run")
    run.create()
    journal = Journal(run.journal_file)
    config = Config(slurm_requeue=wanted)
    surroundings = HostEvents(config, run, journal, [], lambda: 0.0, lambda source: None)
    asyncio.run(surroundings.end(status, source))
    assert controller.asked("requeue 7") == (wanted and requeues)
