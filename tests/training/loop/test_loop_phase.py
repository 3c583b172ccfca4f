"""The table of phases: what leads from one to another, and what never happens."""

import itertools

import pytest

from orchestrator.training.loop.loop_phase import (
    TRANSITIONS,
    LoopEvent,
    LoopPhase,
    has_replay_point,
    is_returning,
)

# What no loop does: resume in the midst of itself, or end a pass that it has not begun.
IMPOSSIBLE = {(phase, LoopEvent.RESUME) for phase in LoopPhase if phase is not LoopPhase.STEPPING}
IMPOSSIBLE |= {(LoopPhase.RESUMED, LoopEvent.END_PASS)}


def follow(*events: LoopEvent, phase: LoopPhase = LoopPhase.STEPPING) -> LoopPhase:
    for event in events:
        phase = TRANSITIONS[phase, event]
    return phase


def test_table_knows_every_event_that_can_happen_in_a_phase() -> None:
    """Each phase has a row for each event, but for those that no loop can make happen there."""
    assert set(itertools.product(LoopPhase, LoopEvent)) == TRANSITIONS.keys() | IMPOSSIBLE
    assert not TRANSITIONS.keys() & IMPOSSIBLE


def test_every_phase_is_reached() -> None:
    """From the beginning, events lead to each of the phases."""
    assert {LoopPhase.STEPPING, *TRANSITIONS.values()} == set(LoopPhase)


@pytest.mark.parametrize("event", [LoopEvent.END_STEP, LoopEvent.END_EPOCH])
def test_step_and_epoch_end_leave_nothing_to_repeat(event: LoopEvent) -> None:
    """After a step, and after an epoch, a checkpoint holds the live state again."""
    assert {TRANSITIONS[phase, event] for phase in LoopPhase} == {LoopPhase.STEPPING}


def test_epoch_of_a_new_run() -> None:
    """The epoch's beginning is repeated after a resume, its steps are not, its evaluation is."""
    begun = follow(LoopEvent.BEGIN_EPOCH, LoopEvent.BEGIN_PASS)
    assert begun is LoopPhase.REPEATABLE
    assert follow(LoopEvent.END_STEP, phase=begun) is LoopPhase.STEPPING
    assert follow(LoopEvent.END_STEP, LoopEvent.END_PASS, phase=begun) is LoopPhase.REPEATABLE


def test_resumed_run_replays_until_it_arrives() -> None:
    """A script that was cut in an epoch repeats its beginning, and whole passes before the cut."""
    way_back = [LoopEvent.RESUME, LoopEvent.BEGIN_EPOCH, LoopEvent.BEGIN_PASS, LoopEvent.END_PASS]
    for length in range(1, len(way_back) + 1):
        assert is_returning(follow(*way_back[:length]))
    assert follow(*way_back, LoopEvent.ARRIVE) is LoopPhase.REPEATABLE


def test_run_cut_between_epochs_arrives_with_nothing_to_undo() -> None:
    """A script that arrives before it enters its loop has no replay point behind it."""
    assert follow(LoopEvent.RESUME, LoopEvent.ARRIVE) is LoopPhase.STEPPING


def test_arriving_changes_nothing_for_a_script_that_is_not_returning() -> None:
    """Only a resumed run has a place to arrive at."""
    for phase in LoopPhase:
        stays = TRANSITIONS[phase, LoopEvent.ARRIVE] is phase
        assert stays is not is_returning(phase)


def test_replay_point_is_kept_on_arrival() -> None:
    """Until the first step, a checkpoint holds the state of the same replay point as before."""
    for phase in LoopPhase:
        assert has_replay_point(phase) is has_replay_point(TRANSITIONS[phase, LoopEvent.ARRIVE])
