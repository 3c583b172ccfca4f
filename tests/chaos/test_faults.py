"""The table of faults."""

from orchestrator.breakpoints.table import BREAKPOINTS, SUPERVISOR, TRAINER
from orchestrator.chaos.faults import FAULTS, MOMENTS, OF_RANKS, TEXTS, Action, help_text


def test_moments_name_breakpoints_and_actions_have_texts() -> None:
    """Each moment names existing breakpoints, and each action has a line in the help."""
    known = {
        f"{SUPERVISOR if part == SUPERVISOR else TRAINER}:{point.name}"
        for part, points in BREAKPOINTS.items()
        for point in points
    }
    for moment in MOMENTS:
        assert {*moment.breakpoints} <= known
    assert {*TEXTS} == {*Action}


def test_one_process_is_offered_no_fault_of_ranks() -> None:
    """Without several ranks there is no fault that only they can have, and the help tells them."""
    one = {fault.name for fault in FAULTS if fault.is_for(1)}
    assert not {name for name in one if "rank" in name or "part" in name or "announced" in name}
    several = {fault.name for fault in FAULTS if fault.is_for(2)}
    assert several - one >= {"sigstop-rank@step", "missing-part@step", "kill-both@announced"}
    assert one - several == {"sigkill@orphan"}
    general, of_ranks = help_text().split("actions with several ranks:")
    assert all(f"  {action} " in of_ranks and f"  {action} " not in general for action in OF_RANKS)
