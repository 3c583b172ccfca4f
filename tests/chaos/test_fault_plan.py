"""The choice of faults, and their order."""

import random

import pytest

from orchestrator.chaos.fault_plan import choose_faults, plan_trials, split_by_reach
from orchestrator.chaos.faults import FAULTS, Action
from orchestrator.errors import ConfigError


def names(text: str | None, count: int | None = None) -> list[str]:
    return [fault.name for fault in choose_faults(text, count)]


def test_choice() -> None:
    """Without --faults each fault comes once; an action alone stands for each of its moments."""
    assert names(None) == [fault.name for fault in FAULTS if fault.is_for(1)]
    assert names("sigkill@save, io-error:3") == [
        "sigkill@save",
        "io-error@save",
        "io-error@rotation",
        "io-error@save",
    ]
    assert len(names("sigkill")) == sum(f.action is Action.SIGKILL and f.is_for(1) for f in FAULTS)
    assert names("sigkill@step:2,bit-flip", count=4) == [
        "sigkill@step",
        "sigkill@step",
        "bit-flip@step",
        "sigkill@step",
    ]


def test_alone_an_action_stands_for_the_moments_that_the_ranks_have() -> None:
    """With several ranks an action has their moments too, and not those of one process."""
    of_two = [fault.name for fault in choose_faults("sigkill", None, ranks=2)]
    assert {*of_two} - {*names("sigkill")} == {"sigkill@announced", "sigkill@parts"}
    assert {*names("sigkill")} - {*of_two} == {"sigkill@orphan"}


@pytest.mark.parametrize(
    ("text", "ranks", "reason"),
    [
        ("sigstop-rank", 1, "sigstop-rank@step: it is a fault of several ranks; .* N for a script"),
        ("sigkill@parts", 1, "sigkill@parts: it is a fault of several ranks"),
        ("sigkill@orphan", 2, "sigkill@orphan: several ranks end with their supervisor"),
    ],
)
def test_fault_of_another_number_of_ranks_is_refused(text: str, ranks: int, reason: str) -> None:
    """A fault that this number of ranks cannot have is named, with the reason."""
    with pytest.raises(ConfigError, match=reason):
        choose_faults(text, None, ranks)


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


def test_rank_is_drawn_for_each_fault() -> None:
    """Faults meet each of several ranks; those of rank 0, or of what it alone does, meet it."""
    chosen = choose_faults(None, 400, ranks=3)
    planned = [p for group in plan_trials(chosen, 48, random.Random(1), ranks=3) for p in group]
    assert {p.rank for p in planned} == {0, 1, 2}
    of_rank_0 = [
        p
        for p in planned
        if p.fault.action is Action.SIGKILL_RANK_0 or p.fault.moment.name == "evaluation"
    ]
    assert {p.rank for p in of_rank_0} == {0}


def test_plan_of_one_process_is_that_of_earlier_versions() -> None:
    """A seed that somebody has noted injects the faults of one process that it did then."""
    chosen = choose_faults("sigkill@any,disk-full@save,sigterm@exit", None)
    (group,) = plan_trials(chosen, 48, random.Random(7))
    assert [(p.fault.name, p.from_step, p.breakpoint, p.fraction) for p in group] == [
        ("sigkill@any", 3, "trainer:step", 0.03749565844198488),
        ("disk-full@save", 34, "supervisor:write", 0.36568891691258554),
        ("sigterm@exit", 41, "trainer:final", 0.07243628666754276),
    ]
    assert len(choose_faults(None, None)) == 68
