"""Requests to stop while no attempt runs."""

from pathlib import Path
from signal import SIGTERM

from orchestrator.rundir.journal import Journal
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.supervisor.stop_request import StopRequest
from orchestrator.supervisor.termination.announcements import Countdown
from orchestrator.supervisor.termination.stop_ladder import StopLadder
from orchestrator.system.stop_signals import EchoFilter
from tests.supervisor.support import GRACE_SECONDS, new_queue


def test_signal_that_trainer_and_supervisor_both_get_is_one_request(tmp_path: Path) -> None:
    """The trainer may report it first; the supervisor's own, later, does not hurry the save."""
    now, journal = [0.0], Journal(tmp_path / "stops.jsonl")
    stop = StopRequest(GRACE_SECONDS, EchoFilter(clock=lambda: now[0]))
    ladder = StopLadder(RunFacts(stop), new_queue(tmp_path), journal, Countdown(print))
    ladder.on_notice("SIGTERM to the trainer")
    ladder.on_signal(SIGTERM.name)
    now[0] = 5.0
    ladder.on_signal("SIGINT")
    ladder.on_notice("SIGINT to the trainer")
    assert [e["source"] for e in journal.read()[0]] == ["SIGTERM to the trainer", "SIGINT"]
    assert stop.source == "SIGTERM to the trainer"
    assert not stop.kill_wanted.is_set()
