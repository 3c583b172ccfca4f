"""The facts about a run, at its start and at the end of an attempt."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.rundir.paths import RunDir
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.output import OutputTarget
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.supervisor.state_machine import Event
from orchestrator.supervisor.stop_request import StopRequest
from orchestrator.telemetry.run_state import State
from orchestrator.terminal.lossy_writer import LossyWriter
from tests.rundir.support import history_of
from tests.supervisor.support import GRACE_SECONDS, new_queue


@pytest.mark.parametrize(
    ("events", "is_new", "restarts"),
    [
        ([], True, 0),
        ([{"event": "run_started"}], True, 0),
        ([{"event": "attempt_started"}, {"event": "restart_scheduled"}], False, 1),
    ],
)
def test_history_of_a_run_is_read_from_the_journal(
    events: list[dict[str, Any]], is_new: bool, restarts: int
) -> None:
    """A later supervisor counts the restarts of the earlier ones, and knows of their attempts."""
    facts = RunFacts.from_history(StopRequest(GRACE_SECONDS), history_of(events))
    assert (facts.is_new, facts.restarts) == (is_new, restarts)
    assert facts.attempt_number is None


def test_exit_of_an_attempt_is_recorded_once(tmp_path: Path) -> None:
    """The exit of the command and the end of its session may both be seen last."""
    facts = RunFacts(StopRequest(GRACE_SECONDS))
    attempt = Attempt(
        RunDir(tmp_path), 3, None, None, new_queue(tmp_path), OutputTarget(LossyWriter(1), 1 << 20)
    )
    facts.attempt = attempt
    facts.machine.handle(Event.SPAWNED)
    assert facts.running_attempt is attempt
    for _ in range(2):
        facts.record_exit(attempt)
        assert facts.machine.state is State.JUDGING
    assert facts.running_attempt is None
    assert facts.attempt_number == 3
    attempt.close()
