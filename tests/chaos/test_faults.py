"""The table of faults, the choice of faults, and their order."""

import random

import pytest

from orchestrator.breakpoints.table import BREAKPOINTS, SUPERVISOR, TRAINER
from orchestrator.chaos.faults import (
    FAULTS,
    MOMENTS,
    TEXTS,
    Action,
    choose_faults,
    plan_trials,
    split_by_reach,
)
from orchestrator.errors import ConfigError


def names(text: str | None, count: int | None = None) -> list[str]:
    return [fault.name for fault in choose_faults(text, count)]


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


def test_choice() -> None:
    """Without --faults each fault comes once; an action alone stands for each of its moments."""
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
    """The unknown name is repeated, with the actions and moments that exist."""
    with pytest.raises(ConfigError, match=r"is not a fault; write an action \(sigkill, .*rotation"):
        choose_faults(text, None)


def test_faults_that_a_script_never_reaches_are_listed() -> None:
    """Faults at moments that the undisturbed run did not reach are not planned.

    A moment that only a death brings about is planned all the same.
    """
    chosen = choose_faults("sigkill@evaluation,sigkill@step,sigkill@load,sigkill@first-batch", None)
    fitting, others = split_by_reach(chosen, {"trainer:step"})
    assert [fault.name for fault in fitting] == ["sigkill@step", "sigkill@load"]
    assert others == ["sigkill@evaluation", "sigkill@first-batch"]


def test_moment_is_one_that_the_run_reaches() -> None:
    """A save is met where this run saves: in the supervisor, or in a framework's trainer."""
    chosen = choose_faults("sigkill@save:20,sigkill@orphan", None)
    fitting, _ = split_by_reach(chosen, {"trainer:saving", "trainer:publish"})
    (group,) = plan_trials(fitting, 100, random.Random(0))[:1]
    at_save = {planned.breakpoint for planned in group if planned.fault.name == "sigkill@save"}
    assert at_save == {"trainer:saving", "trainer:publish"}


def test_plan_follows_the_seed() -> None:
    """The same seed gives the same trials; each fault is planned, those of a run's end last."""
    chosen = choose_faults(None, 200)
    first = plan_trials(chosen, 48, random.Random(7))
    assert first == plan_trials(chosen, 48, random.Random(7))
    assert first != plan_trials(chosen, 48, random.Random(8))
    assert sorted(p.fault.name for group in first for p in group) == sorted(f.name for f in chosen)
    for group in first:
        assert len(group) <= 12
        ends = [planned.fault.moment.at_end for planned in group]
        assert ends == sorted(ends)
        assert sum(ends) <= 1
        assert all(0 <= planned.from_step < 48 for planned in group)


def test_plan_of_a_run_of_one_step() -> None:
    """Every fault is planned, however short the run is."""
    groups = plan_trials(choose_faults(None, None), 1, random.Random(0))
    assert all(planned.from_step == 0 for group in groups for planned in group)
