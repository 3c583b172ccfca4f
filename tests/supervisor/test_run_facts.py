"""The facts about a run, at its start and at the end of an attempt."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.ipc.control_page import Field
from orchestrator.rundir.paths import RunDir
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.output import OutputTarget
from orchestrator.supervisor.recovery.failure_kinds import Kind
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.supervisor.state_machine import Event, StateMachine
from orchestrator.supervisor.stop_request import StopRequest
from orchestrator.telemetry.run_state import State
from orchestrator.terminal.lossy_writer import LossyWriter
from tests.rundir.support import history_of
from tests.supervisor.support import GRACE_SECONDS, new_queue, take_snapshot


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


def test_restarts_go_on_from_those_of_earlier_supervisors() -> None:
    """Each restart counts in all, and for the kind of end before it."""
    events = [{"event": "attempt_exited", "kind": "hang"}, {"event": "restart_scheduled"}]
    facts = RunFacts.from_history(StopRequest(GRACE_SECONDS), history_of(events))
    for kind in (Kind.HANG, Kind.KILLED):
        facts.record_restart(kind)
    assert (facts.restarts, facts.restarts_by_kind) == (3, {"hang": 2, "killed": 1})


def test_steps_of_all_attempts_are_counted(tmp_path: Path) -> None:
    """What a trainer does again after a restart counts twice, and what it resumes from does not."""
    facts, queue = RunFacts(StopRequest(GRACE_SECONDS)), new_queue(tmp_path)
    snapshot = take_snapshot(queue)  # of step 7
    resumed = {1: None, 2: snapshot, 3: None}
    for number, step in ((1, 10), (2, 12), (3, 2)):
        output = OutputTarget(LossyWriter(1), 1 << 20)
        attempt = Attempt(RunDir(tmp_path), number, None, resumed[number], queue, output)
        facts.attempt = attempt
        before = facts.trained_steps
        attempt.main.page.values[Field.STEP] = step
        # It is on the page before all ranks say that they have resumed.
        assert facts.trained_steps - before == step - (7 if number == 2 else 0)
        attempt.main.resumed = True
        facts.machine = StateMachine()
        facts.machine.handle(Event.SPAWNED)
        facts.record_exit(attempt)
        attempt.close()
    assert facts.trained_steps == 10 + 5 + 2


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
