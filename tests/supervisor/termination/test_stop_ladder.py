"""Requests to stop, before an attempt is there that could."""

from pathlib import Path
from signal import SIGTERM

from orchestrator.rundir.journal import Journal
from orchestrator.supervisor.state_machine import StateMachine
from orchestrator.supervisor.termination.announcements import Countdown
from orchestrator.supervisor.termination.hang_budgets import HangTimeouts
from orchestrator.supervisor.termination.stop_ladder import Watch
from orchestrator.system.stop_signals import EchoFilter


def test_a_signal_that_trainer_and_supervisor_get_is_one_request(tmp_path: Path) -> None:
    """The trainer may tell of it first; ours, an instant later, does not hurry the save then."""
    now, journal = [0.0], Journal(tmp_path / "journal.jsonl")
    echoes = EchoFilter(clock=lambda: now[0])
    budgets, countdown = HangTimeouts("off"), Countdown(print)
    watch = Watch(
        StateMachine(),
        30.0,
        SIGTERM,
        budgets,
        lambda: 0.0,
        lambda: False,
        journal,
        echoes,
        countdown,
    )
    watch.notice("SIGTERM to the trainer")
    watch.hear_signal("SIGTERM")
    now[0] = 5.0
    watch.hear_signal("SIGINT")
    watch.notice("SIGINT to the trainer")
    assert [e["source"] for e in journal.read()[0]] == ["SIGTERM to the trainer", "SIGINT"]
    assert watch.stop_source == "SIGTERM to the trainer"
    assert not watch.kill_wanted.is_set()
