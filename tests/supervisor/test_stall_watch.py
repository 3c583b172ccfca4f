"""A run that makes no checkpoints any more."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from orchestrator.config import Every
from orchestrator.exitcodes import ExitStatus
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import RunDir
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.output import OutputTarget
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.supervisor.stall_watch import CheckpointRhythm, RunningClock, StallWatch
from orchestrator.supervisor.stop_request import StopRequest
from orchestrator.system.races import beside
from orchestrator.terminal.lossy_writer import LossyWriter
from tests.supervisor.support import GRACE_SECONDS, new_queue
from tests.support import wait_until


def rhythm_of(*times: float, least_seconds: float = 1.0) -> CheckpointRhythm:
    rhythm = CheckpointRhythm(least_seconds)
    for time in times:
        rhythm.record(time)
    return rhythm


@pytest.mark.parametrize(
    ("times", "usual"),
    [
        ((), None),
        ((5,), None),
        ((5, 15, 25, 35), None),
        ((5, 15, 25, 35, 45), 10),
        ((0, 10, 20, 500, 510), 10),
        ((0, 10, 490, 500, 980), 480),
        ((0, 1, 3600, 3601, 7200), 3599),
        ((0, 0.1, 0.2, 0.3, 0.4), 1),
        (tuple(range(0, 1000, 10)) + tuple(range(1000, 3000, 100)), 100),
    ],
)
def test_usual_time_is_the_longest_but_one_of_the_newest(
    times: tuple[float, ...], usual: float | None
) -> None:
    """It is unknown before the fifth checkpoint; one outage does not make it longer."""
    assert rhythm_of(*times).usual_seconds == usual


def test_stall_is_told_once_until_the_next_checkpoint() -> None:
    """Three times the usual time is a stall; a checkpoint begins the count anew."""
    rhythm = rhythm_of(-20, -10, 0, 10, 20)
    assert rhythm.stalled_seconds(49) is None
    assert rhythm.stalled_seconds(50) == 30
    assert rhythm.stalled_seconds(500) is None
    rhythm.record(501)
    assert rhythm.stalled_seconds(530) is None
    assert rhythm.stalled_seconds(531) == 30


def test_interval_that_was_asked_for_is_never_a_stall() -> None:
    """Checkpoints that a person requests in between do not make later ones overdue."""
    rhythm = rhythm_of(-20, -10, 0, 10, 20, least_seconds=600)
    assert rhythm.stalled_seconds(1819) is None
    assert rhythm.stalled_seconds(1820) == 1800


def test_pause_of_the_supervisor_hardly_counts() -> None:
    """After Ctrl-Z and fg the time between the two is no reason to tell of a stall."""
    times = iter([100.0, 105.0, 110.0, 5000.0, 5005.0])
    clock = RunningClock(20.0, lambda: next(times))
    assert [clock.seconds() for _ in range(4)] == [5, 10, 30, 35]


EPOCH = Every(1, "epochs")


def watch_together(tmp_path: Path, *watched: tuple[RunFacts, Every, float]) -> list[dict[str, Any]]:
    """Watch one journal with several watches until the last tells of a stall; return all stalls."""
    journal = Journal(tmp_path / "journal.jsonl")
    watches = [
        StallWatch(facts, journal, every, least_seconds, poll_seconds=0.005)
        for facts, every, least_seconds in watched
    ]
    *_, (_, _, longest) = watched

    def stalls() -> list[dict[str, Any]]:
        return [event for event in journal.read()[0] if event["event"] == JournalEvent.STALLED]

    async def play() -> None:
        async with beside(*(watch.run() for watch in watches)):
            for step in range(5):
                journal.write(JournalEvent.CHECKPOINT_PUBLISHED, step=step)
                for watch in watches:
                    watch.on_journal_event({"event": JournalEvent.CHECKPOINT_PUBLISHED})
            await asyncio.to_thread(
                wait_until,
                lambda: longest in [event["usual_seconds"] for event in stalls()],
                "a stall",
            )

    asyncio.run(play())
    return stalls()


def test_stall_is_recorded_in_journal_and_log(tmp_path: Path) -> None:
    """The event has how long it has been, and what is usual; the message says what to do."""
    with capture_logs() as logs:
        (event,) = watch_together(tmp_path, (RunFacts(StopRequest(GRACE_SECONDS)), EPOCH, 0.01))
    assert event["seconds"] >= 3 * event["usual_seconds"]
    told = "no new checkpoint for 0.0 s, and usually one comes within 0.0 s"
    assert told in event["reason"]
    (log,) = logs
    assert log["event"] == f"{event['reason']}; `orchestrator status` says what the run does"


@pytest.mark.parametrize("excuse", ["a stop", "a complete training", "a long interval"])
def test_checkpoint_that_is_not_expected_does_not_stall(tmp_path: Path, excuse: str) -> None:
    """A watch with an excuse is silent while another, which begins later, tells of a stall."""
    facts, every = RunFacts(StopRequest(GRACE_SECONDS)), EPOCH
    match excuse:
        case "a stop":
            facts.stop.record("SIGTERM")
        case "a complete training":
            output = OutputTarget(LossyWriter(1), 1 << 20)
            facts.attempt = Attempt(RunDir(tmp_path), 1, None, None, new_queue(tmp_path), output)
            facts.attempt.main.reported_status = ExitStatus.COMPLETE
        case "a long interval":
            every = Every(600, "seconds")
    control = RunFacts(StopRequest(GRACE_SECONDS)), EPOCH, 0.04
    stalls = watch_together(tmp_path, (facts, every, 0.01), control)
    assert [event["usual_seconds"] for event in stalls] == [0.04]
    if facts.attempt is not None:
        facts.attempt.close()
