"""The table of faults, the choice of them and their order."""

import random

import pytest

from orchestrator import breakpoints
from orchestrator.chaos.faults import FAULTS, MOMENTS, TEXTS, Action, choose, plan, reachable
from orchestrator.errors import ConfigError


def names(text: str | None, count: int | None = None) -> list[str]:
    return [fault.name for fault in choose(text, count)]


def test_every_place_is_a_breakpoint_and_every_action_has_words() -> None:
    """A moment names places that processes know, and no action lacks its line in the help."""
    known = {f"{role}:{place.name}" for role, all_ in breakpoints.PLACES.items() for place in all_}
    for moment in MOMENTS:
        assert {*moment.places} <= known
    assert {*TEXTS} == {*Action}


def test_choice() -> None:
    """Without a word each fault comes once; a name stands for its moments, a number goes round."""
    assert names(None) == [fault.name for fault in FAULTS]
    assert names("sigkill@save, io-error:3") == [
        "sigkill@save",
        "io-error@save",
        "io-error@rotation",
        "io-error@save",
    ]
    assert len(names("sigkill")) == sum(f.action is Action.SIGKILL for f in FAULTS)
    assert names("sigkill@step:2,bit-flip", count=4) == [
        "sigkill@step",
        "sigkill@step",
        "bit-flip@step",
        "sigkill@step",
    ]


@pytest.mark.parametrize("text", ["nonsense", "sigkill@nowhere", "sigkill:x", "bit-flip@save"])
def test_unknown_fault_is_refused(text: str) -> None:
    """What is no fault is named, with what there is."""
    with pytest.raises(ConfigError, match=r"is no fault; there are sigkill, .*rotation"):
        choose(text, None)


def test_faults_that_a_script_never_comes_to_are_told() -> None:
    """Without polls and checkpoints to rotate only the rest is planned; deaths bring their own."""
    chosen = choose("sigkill@evaluation,sigkill@step,sigkill@load,sigkill@first-batch", None)
    fitting, others = reachable(chosen, {"trainer:step"})
    assert [fault.name for fault in fitting] == ["sigkill@step", "sigkill@load"]
    assert others == ["sigkill@evaluation", "sigkill@first-batch"]


def test_plan_follows_the_seed() -> None:
    """The same seed gives the same runs; no fault is left out, and the end's come at the end."""
    chosen = choose(None, 200)
    first = plan(chosen, 48, random.Random(7))
    assert first == plan(chosen, 48, random.Random(7))
    assert first != plan(chosen, 48, random.Random(8))
    assert sorted(p.fault.name for group in first for p in group) == sorted(f.name for f in chosen)
    for group in first:
        assert len(group) <= 12
        ends = [planned.fault.moment.at_end for planned in group]
        assert ends == sorted(ends)
        assert sum(ends) <= 1
        assert all(0 <= planned.from_step < 48 for planned in group)


def test_plan_of_a_run_of_one_step() -> None:
    """However short a run is, each fault finds a place."""
    groups = plan(choose(None, None), 1, random.Random(0))
    assert all(planned.from_step == 0 for group in groups for planned in group)
