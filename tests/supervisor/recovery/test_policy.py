"""The table of decisions, row by row, and its equality with the documentation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.position import Position
from orchestrator.supervisor.recovery.failure_budget import (
    OUTSIDE,
    AttemptEnd,
    FailureBudget,
    TotalLimits,
)
from orchestrator.supervisor.recovery.failure_kinds import Kind
from orchestrator.supervisor.recovery.policy import (
    ALL,
    ALWAYS,
    FAILURES,
    POISON,
    SCRIPT,
    SHORTAGE,
    TABLE,
    Action,
    DecisionRow,
    decide,
)

PAGE = (Path(__file__).parents[3] / "docs" / "explanation" / "restarts.md").read_text()


def end(kind: Kind = Kind.EXCEPTION, **facts: Any) -> AttemptEnd:
    mark = None if kind in OUTSIDE else str(kind)
    return AttemptEnd(kind, **({"fingerprint": mark, "step": 50, "resumed_step": 10} | facts))


def case(
    action: Action,
    words: str,
    this: AttemptEnd,
    *earlier: AttemptEnd,
    **budget: Any,
) -> tuple[Action, str, AttemptEnd, tuple[AttemptEnd, ...], dict[str, Any]]:
    return action, words, this, earlier, budget


EXCEPTION, KILLED, HARDWARE = end(), end(Kind.KILLED), end(Kind.HARDWARE)
SOON = end(step=11)
LOADING = end(Kind.CRASHED, step=0, resumed_step=None, loading=Position(10, 1))
KILLED_LOADING = replace(LOADING, fingerprint=None, kind=Kind.KILLED)
GIVE_UP, RETRY, DEMOTE = Action.GIVE_UP, Action.RETRY, Action.DEMOTE
CASES = {
    "complete": case(Action.FINISH, "complete", end(Kind.COMPLETE)),
    "stopped": case(Action.STOP, "was requested", end(Kind.STOPPED), slices=3),
    "all attempts made": case(
        GIVE_UP, "all 2 attempts", KILLED, limits=TotalLimits(attempts=2), attempts=2
    ),
    "stopped in the last attempt": case(
        Action.STOP, "", end(Kind.STOPPED), limits=TotalLimits(attempts=2), attempts=2
    ),
    "time is up": case(
        GIVE_UP, "--give-up-after", end(Kind.STOPPED), limits=TotalLimits(seconds=9), begun=0.0
    ),
    "stopped too early too often": case(GIVE_UP, "attempt is", end(Kind.STOPPED), slices=4),
    "the same, more restarts allowed": case(
        Action.STOP, "", end(Kind.STOPPED), slices=4, allowed=4
    ),
    "refused": case(GIVE_UP, "would not help", end(Kind.REFUSED)),
    "complete, then failed": case(GIVE_UP, "would not help", end(Kind.FAILED_AFTERWARDS)),
    "before the first step": case(GIVE_UP, "its first safe point", EXCEPTION, ever_safe=False),
    "too little memory for a step": case(
        GIVE_UP, "its first safe point", end(Kind.CUDA_OUT_OF_MEMORY), ever_safe=False
    ),
    "stopped before its session": case(
        Action.REQUEUE, "before it opened a session", end(Kind.TERMINATED), ever_safe=False
    ),
    "killed before the first step": case(RETRY, "", KILLED, ever_safe=False),
    "disk failed before the first step": case(RETRY, "", end(Kind.IO_ERROR), ever_safe=False),
    "snapshot unloadable": case(
        Action.FORGET, "a checkpoint takes its place", end(rejected_snapshot=True)
    ),
    "memory short for the snapshot": case(
        RETRY, "", end(Kind.MEMORY_ERROR, rejected_snapshot=True)
    ),
    "loading": case(RETRY, "", LOADING),
    "loading again": case(DEMOTE, "of step 10 ended the trainer twice", LOADING, LOADING),
    "loading again, otherwise": case(
        DEMOTE, "", replace(LOADING, kind=Kind.OOM_KILLED), replace(LOADING, kind=Kind.KILLED)
    ),
    "killed while loading, after a crash": case(
        DEMOTE, "ended the trainer twice", KILLED_LOADING, LOADING
    ),
    "killed while loading, after a hang": case(
        DEMOTE, "ended the trainer twice", KILLED_LOADING, replace(LOADING, kind=Kind.HANG)
    ),
    "killed while loading again": case(RETRY, "", KILLED_LOADING, KILLED_LOADING),
    "killed while loading a third time": case(RETRY, "", KILLED_LOADING, *[KILLED_LOADING] * 2),
    "killed while loading a fourth time": case(
        DEMOTE, "each of the last 4 kills", KILLED_LOADING, *[KILLED_LOADING] * 3
    ),
    "killed while loading a fourth time, loaded between": case(
        RETRY, "", KILLED_LOADING, KILLED_LOADING, KILLED, *[KILLED_LOADING] * 2, allowed=9
    ),
    "killed while loading again, one restart allowed": case(
        DEMOTE, "each of the last 2 kills", KILLED_LOADING, KILLED_LOADING, allowed=1
    ),
    "killed while loading, no restart allowed": case(
        GIVE_UP, "1 failures without", KILLED_LOADING, allowed=0
    ),
    "loading another": case(
        RETRY, "", replace(LOADING, fingerprint="x", loading=Position(9, 1)), LOADING
    ),
    "loading again, loaded between": case(RETRY, "", KILLED_LOADING, LOADING, KILLED),
    "loading again, one demoted": case(
        GIVE_UP, "came again at step 0", LOADING, LOADING, demoted=True
    ),
    "killed while loading again, one demoted": case(
        RETRY,
        "",
        KILLED_LOADING,
        KILLED_LOADING,
        demoted=True,
    ),
    "import error while loading again": case(
        GIVE_UP,
        "came again",
        replace(LOADING, kind=Kind.IMPORT_ERROR),
        replace(LOADING, kind=Kind.IMPORT_ERROR),
    ),
    "disk failed while loading again": case(
        RETRY, "", replace(LOADING, kind=Kind.IO_ERROR), replace(LOADING, kind=Kind.IO_ERROR)
    ),
    "memory short while loading again": case(
        GIVE_UP,
        "came again",
        replace(LOADING, kind=Kind.MEMORY_ERROR),
        replace(LOADING, kind=Kind.MEMORY_ERROR),
    ),
    "again right after resuming": case(DEMOTE, "after resuming from step 10", SOON, SOON),
    "again after resuming, one demoted": case(GIVE_UP, "at step 11", SOON, SOON, demoted=True),
    "again two steps after resuming": case(GIVE_UP, "", end(step=12), end(step=12)),
    "memory short right after resuming": case(
        GIVE_UP,
        "at step 11",
        end(Kind.MEMORY_ERROR, step=11),
        end(Kind.MEMORY_ERROR, step=11),
    ),
    "called wrongly right after resuming": case(
        GIVE_UP, "came again", end(Kind.USAGE, step=11), end(Kind.USAGE, step=11)
    ),
    "import error again": case(
        GIVE_UP,
        "at step 0",
        end(Kind.IMPORT_ERROR, step=0, resumed_step=None),
        end(Kind.IMPORT_ERROR, step=0, resumed_step=None),
    ),
    "once": case(RETRY, "", EXCEPTION),
    "another before": case(RETRY, "", EXCEPTION, end(fingerprint="other")),
    "at another step": case(RETRY, "", EXCEPTION, end(step=49)),
    "again": case(GIVE_UP, "the same failure came again at step 50", EXCEPTION, EXCEPTION),
    "disk failed again": case(RETRY, "", end(Kind.DISK_FULL), end(Kind.DISK_FULL)),
    "hung again": case(GIVE_UP, "came again", end(Kind.HANG), end(Kind.HANG)),
    "hung again right after resuming": case(
        GIVE_UP, "came again", end(Kind.HANG, step=11), end(Kind.HANG, step=11)
    ),
    "hung before the first step": case(RETRY, "", end(Kind.HANG), ever_safe=False),
    "killed again": case(RETRY, "", KILLED, KILLED, KILLED),
    "killed too often": case(
        GIVE_UP,
        "each attempt is shorter than the checkpoint interval: 4 times",
        KILLED,
        *[KILLED] * 3,
    ),
    "killed too often for few restarts": case(
        GIVE_UP, "2 failures without a new checkpoint", KILLED, KILLED, allowed=1
    ),
    "too many failures": case(
        GIVE_UP,
        "4 failures without a new checkpoint; --max-restarts allows 3",
        end(Kind.HANG),
        end(Kind.IO_ERROR),
        KILLED,
        HARDWARE,
    ),
    "hardware": case(RETRY, "", HARDWARE),
    "hardware again": case(Action.REQUEUE, "this machine is to blame", HARDWARE, HARDWARE),
    "hardware everywhere": case(GIVE_UP, "4 failures", HARDWARE, *[HARDWARE] * 3),
}


def budget_of(
    this: AttemptEnd, earlier: tuple[AttemptEnd, ...], facts: dict[str, Any]
) -> FailureBudget:
    budget = FailureBudget(**({"allowed": 3, "ever_safe": True} | facts))
    for past in (*earlier, this):
        budget.record_end(past)
    return budget


@pytest.mark.parametrize("name", CASES)
def test_decision_of_each_case(name: str) -> None:
    """Each end, after earlier ones, has the action and the reason of its case."""
    action, words, this, earlier, facts = CASES[name]
    decision = decide(this, budget_of(this, earlier, facts))
    assert decision.action == action, decision
    assert words in decision.reason


def test_each_row_decides_something() -> None:
    """The cases above reach every row of the table."""

    def row_of(this: AttemptEnd, budget: FailureBudget) -> DecisionRow:
        return next(r for r in TABLE if this.kind in r.kinds and r.when.holds(this, budget))

    reached = {
        id(row_of(this, budget_of(this, earlier, facts)))
        for _, _, this, earlier, facts in CASES.values()
    }
    assert [row for row in TABLE if id(row) not in reached] == []


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_has_a_last_resort(kind: Kind) -> None:
    """For every kind there is a row without a condition."""
    assert any(kind in row.kinds and row.when is ALWAYS for row in TABLE)


def test_progress_towards_a_failure_does_not_excuse_it() -> None:
    """A checkpoint before the failing step refills the budget; the failure is remembered."""
    this, budget = end(step=8, resumed_step=3), FailureBudget(5)
    budget.record_end(this)
    budget.refill(Position(7, 0))
    budget.record_end(this)
    assert budget.spent == 1
    assert decide(this, budget).action is Action.GIVE_UP
    budget.refill(Position(9, 0))
    budget.record_end(this)
    assert decide(this, budget).action is Action.RETRY


def test_checkpoint_of_epoch_0_is_progress() -> None:
    """A script that counts from 0 has saved something, and its failure may not come again."""
    this, budget = end(step=0, resumed_step=None), FailureBudget(3)
    budget.refill(Position(0, 0))
    budget.record_end(this)
    assert decide(this, budget).action is Action.RETRY
    budget.refill(Position(0, 0))
    assert budget.spent == 1


def test_safe_point_of_an_earlier_attempt_is_remembered() -> None:
    """A failure after a safe point proves the script able; a later one before it is retried."""
    budget = FailureBudget(3)
    budget.record_end(end(reached_safe_point=True))
    early = end(fingerprint="mount", step=0, resumed_step=None)
    budget.record_end(early)
    assert decide(early, budget).action is Action.RETRY


NAMES = {
    ALL: "any",
    FAILURES: "any except `complete`, `stopped`, `refused`, `failed_afterwards`",
    FAILURES | {Kind.STOPPED}: "any except `complete`, `refused`, `failed_afterwards`",
    OUTSIDE: "outside",
    SCRIPT: "script",
    SHORTAGE: "shortage",
    SCRIPT | SHORTAGE: "script, shortage",
    SCRIPT | SHORTAGE | {Kind.HANG}: "script, shortage, `hang`",
    POISON: "script except `import_error`, `never_started` and `usage`",
}


def words_of(row: DecisionRow) -> str:
    by_name = ", ".join(f"`{kind}`" for kind in Kind if kind in row.kinds)
    kinds = NAMES.get(row.kinds, by_name)
    if row.kinds > POISON and row.kinds not in NAMES:
        others = ", ".join(f"`{kind}`" for kind in Kind if kind in row.kinds - POISON)
        kinds = f"{NAMES[POISON]}; also {others}"
    return f"| {kinds} | {row.when.words or 'always'} | `{row.action}` |"


def test_page_has_the_table() -> None:
    """The page on restarts has the rows in their order, and explains every kind and action."""
    kinds, decisions = PAGE.split("## Diagnosis")[1].split("## Decisions")
    rows = [line for line in decisions.splitlines() if line.startswith("| ")]
    assert rows[1:] == [words_of(row) for row in TABLE]
    for kind in Kind:
        groups = [f" {NAMES[group]} " for group in (OUTSIDE, SCRIPT, SHORTAGE) if kind in group]
        assert f"\n| `{kind}` |{''.join(groups) or ' '}| " in kinds
    for action in Action:
        assert f"\n- `{action}`: " in decisions
