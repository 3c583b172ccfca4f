"""The supervisor's transition table."""

import itertools

import pytest

from orchestrator.supervisor.state_machine import TRANSITIONS, Event, StateMachine
from orchestrator.telemetry.run_state import State

FINAL_STATES = {State.COMPLETED, State.STOPPED, State.FAILED}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_machine_moves_along_the_table_only(state: State, event: Event) -> None:
    """An event in the table moves the machine; any other is a defect and raises."""
    machine = StateMachine()
    machine.state = state
    assert machine.allows(event) is ((state, event) in TRANSITIONS)
    if machine.allows(event):
        assert machine.handle(event) is TRANSITIONS[state, event] is machine.state
    else:
        with pytest.raises(RuntimeError, match=f"event {event} in state {state}"):
            machine.handle(event)


@pytest.mark.parametrize("state", sorted(set(State) - FINAL_STATES))
def test_every_state_accepts_a_stop_and_leads_to_an_end(state: State) -> None:
    """Every state but the final ones accepts a stop, and leads to a final one."""
    assert (state, Event.STOP) in TRANSITIONS
    reached, todo = set(), {state}
    while todo:
        current = todo.pop()
        reached.add(current)
        todo |= {new for (old, _), new in TRANSITIONS.items() if old is current} - reached
    assert reached & FINAL_STATES


def test_no_transition_leaves_a_final_state() -> None:
    """Completed, stopped and failed are final."""
    assert not {old for old, _ in TRANSITIONS} & FINAL_STATES
