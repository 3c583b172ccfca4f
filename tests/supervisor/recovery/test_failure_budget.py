"""The failure budget of a run, across its supervisors."""

from typing import Any

import pytest

from orchestrator.checkpoint.position import Position
from orchestrator.supervisor.recovery.failure_budget import AttemptEnd, FailureBudget
from orchestrator.supervisor.recovery.failure_kinds import Kind

STARTED = {"event": "attempt_started"}


def published(step: int, healthy: bool = True) -> dict[str, Any]:
    return {"event": "checkpoint_published", "step": step, "epoch": 0, "healthy": healthy}


def exited(step: int, **facts: Any) -> dict[str, Any]:
    usual = {
        "event": "attempt_exited",
        "outcome": "failed",
        "kind": "exception",
        "step": step,
        "fingerprint": "f",
        "connected": True,
    }
    return usual | facts


def killed(step: int) -> dict[str, Any]:
    return exited(step, kind="killed", fingerprint=None)


def stopped(step: int) -> dict[str, Any]:
    return exited(step, kind="stopped", outcome="stopped", fingerprint=None)


@pytest.mark.parametrize(
    ("events", "spent"),
    [
        ([], 0),
        ([exited(1), exited(2)], 2),
        ([exited(1), published(2)], 0),
        ([published(2), exited(3), published(2)], 1),
        ([published(2), exited(3), published(3)], 0),
        ([published(2), exited(3), published(4, healthy=False)], 1),
        ([exited(1, left_step=1, left_epoch=0)], 1),
        ([exited(1), exited(4, left_step=3, left_epoch=0)], 1),
        ([stopped(1)], 0),
        ([exited(1), {"event": "gave_up"}], 0),
        ([exited(1) | {"step": "damaged"}], 1),
        ([exited(1) | {"kind": "of a later version"}], 1),
    ],
)
def test_failures_since_progress_are_read_from_the_journal(
    events: list[dict[str, Any]], spent: int
) -> None:
    """Failures since the last progress count, under every supervisor of the run."""
    assert FailureBudget.from_journal(5, events).spent == spent


@pytest.mark.parametrize(
    ("events", "slices"),
    [
        ([STARTED, killed(1), STARTED, killed(1)], 2),
        ([STARTED, published(2), killed(3)], 1),
        ([STARTED, killed(1), STARTED, published(2)], 0),
        ([STARTED, exited(1), STARTED, exited(1)], 0),
        # A stop that has saved something new does not count.
        ([published(2), STARTED, stopped(2), STARTED, stopped(2)], 2),
        ([published(2), STARTED, published(3), stopped(3)], 0),
        ([published(2), STARTED, stopped(2) | {"connected": False}], 0),
        # No end is recorded where the whole machine went away.
        ([published(2), STARTED, STARTED, STARTED, stopped(2)], 3),
        ([published(2), STARTED, published(3), STARTED], 1),
        ([STARTED, STARTED], 0),
        ([STARTED, killed(1), {"event": "gave_up"}], 0),
    ],
)
def test_ends_from_outside_are_read_from_the_journal(
    events: list[dict[str, Any]], slices: int
) -> None:
    """Kills, stops that saved nothing and machine failures add up until there is progress."""
    assert FailureBudget.from_journal(5, events).slices == slices


@pytest.mark.parametrize(
    ("events", "demoted", "ever_safe"),
    [
        ([], False, False),
        ([exited(1)], False, False),
        ([exited(1, reached_safe_point=True)], False, True),
        ([exited(1, reached_safe_point=True), exited(0)], False, True),
        ([published(2)], False, True),
        ([{"event": "checkpoint_quarantined", "demoted": True}], True, False),
        ([{"event": "checkpoint_quarantined", "demoted": False}], False, False),
        ([{"event": "checkpoint_quarantined", "demoted": True}, published(9)], False, True),
        (
            [{"event": "checkpoint_quarantined", "demoted": True}, {"event": "gave_up"}],
            True,
            False,
        ),
    ],
)
def test_earlier_demotions_and_safe_points_are_read_from_the_journal(
    events: list[dict[str, Any]], demoted: bool, ever_safe: bool
) -> None:
    """A new supervisor knows whether a checkpoint was demoted and whether a step ever succeeded."""
    budget = FailureBudget.from_journal(5, events)
    assert (budget.demoted, budget.ever_safe) == (demoted, ever_safe)


def test_ends_are_read_from_the_journal() -> None:
    """The facts that decide survive a requeue: kind, step, what was resumed or loaded."""
    event = exited(3, kind="crashed", resumed_step=2, loading_step=2, loading_epoch=1)
    (end,) = FailureBudget.from_journal(5, [event]).failures
    assert end == AttemptEnd(
        Kind.CRASHED, "f", 3, resumed_step=2, loading=Position(2, 1), connected=True
    )


@pytest.mark.parametrize(
    ("facts", "kind"),
    [({"fingerprint": "f"}, Kind.EXCEPTION), ({"fingerprint": None}, Kind.KILLED)],
)
def test_journals_from_before_there_were_kinds(facts: dict[str, Any], kind: Kind) -> None:
    """An end without a fingerprint came from outside."""
    event = {key: value for key, value in exited(1).items() if key != "kind"} | facts
    assert FailureBudget.from_journal(5, [event]).failures[0].kind is kind
