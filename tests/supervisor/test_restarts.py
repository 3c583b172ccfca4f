"""Restart policy: facts in, decision out."""

import asyncio
import contextlib
from typing import Any

import pytest

from orchestrator.supervisor.restarts import (
    AttemptFailedError,
    Budget,
    Failure,
    GiveUp,
    Retry,
    decide,
    fingerprint,
    retrying,
)


def failure(**facts: Any) -> Failure:
    content: dict[str, Any] = {
        "cause": "it failed",
        "fingerprint": "abc",
        "step": 50,
        "resumed_step": 10,
        "before_first_safe_point": False,
    }
    return Failure(**(content | facts))


@pytest.mark.parametrize(
    ("facts", "earlier", "demoted", "ever_safe", "expected"),
    [
        ({}, [], False, True, Retry()),
        ({}, [("other", 50)], False, True, Retry()),
        ({}, [("abc", 49)], False, True, Retry()),
        ({}, [("abc", 50)], False, True, GiveUp),
        ({"step": 11}, [("abc", 11)], False, True, Retry(demote=True)),
        ({"step": 11}, [("abc", 11)], True, True, GiveUp),
        ({"step": 12}, [("abc", 12)], False, True, GiveUp),
        ({"step": 0, "resumed_step": None}, [("abc", 0)], False, True, GiveUp),
        ({"fingerprint": None}, [(None, 50)], False, True, Retry()),
        ({"fingerprint": None}, [(None, 50)] * 2, False, True, Retry()),
        ({"fingerprint": None}, [(None, 50)] * 3, False, True, GiveUp),
        ({"before_first_safe_point": True}, [], False, False, GiveUp),
        ({"before_first_safe_point": True}, [], False, True, Retry()),
        ({"before_first_safe_point": True, "fingerprint": None}, [], False, False, Retry()),
    ],
)
def test_decision(
    facts: dict[str, Any],
    earlier: list[tuple[str | None, int]],
    demoted: bool,
    ever_safe: bool,
    expected: object,
) -> None:
    """Each row of the table in docs/process-contract.md."""
    budget = Budget(
        3, list(earlier), not_passed=list(earlier), demoted=demoted, ever_safe=ever_safe
    )
    this = failure(**facts)
    budget.record(this)
    decision = decide(this, budget)
    if expected is GiveUp:
        assert isinstance(decision, GiveUp)
    else:
        assert decision == expected


def published(step: int, healthy: bool = True) -> dict[str, Any]:
    return {"event": "checkpoint_published", "step": step, "epoch": 0, "healthy": healthy}


def quarantined(demoted: bool) -> dict[str, Any]:
    return {"event": "checkpoint_quarantined", "demoted": demoted}


def test_progress_towards_a_failure_does_not_excuse_it() -> None:
    """What is saved before the step at which a failure came refills the budget, but it is known."""
    failure = Failure("it failed", "f", step=8, resumed_step=3, before_first_safe_point=False)
    budget = Budget(5)
    budget.record(failure)
    budget.refill(7, 0)
    budget.record(failure)
    assert budget.spent == 1
    assert isinstance(decide(failure, budget), GiveUp)
    budget.refill(9, 0)
    budget.record(failure)
    assert not isinstance(decide(failure, budget), GiveUp)


def exited(step: int, **facts: Any) -> dict[str, Any]:
    usual = {"event": "attempt_exited", "outcome": "failed", "step": step, "fingerprint": "f"}
    return usual | facts


@pytest.mark.parametrize(
    ("events", "spent"),
    [
        ([], 0),
        ([exited(1), exited(2)], 2),
        ([exited(1), published(2)], 0),
        ([published(2), exited(3), published(2)], 1),
        ([published(2), exited(3), published(3)], 0),
        ([published(2), exited(3), published(4, healthy=False)], 1),
        ([exited(1, outcome="stopped")], 0),
        ([exited(1), {"event": "gave_up"}], 0),
        ([exited(1) | {"step": "damaged"}], 1),
    ],
)
def test_budget_is_read_from_the_journal(events: list[dict[str, Any]], spent: int) -> None:
    """Failures since the last real progress count, whoever supervised then."""
    assert Budget.from_journal(5, events).spent == spent


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
def test_what_was_tried_is_read_from_the_journal(
    events: list[dict[str, Any]], demoted: bool, ever_safe: bool
) -> None:
    """A new supervisor knows whether a checkpoint was demoted and whether a step ever succeeded."""
    budget = Budget.from_journal(5, events)
    assert (budget.demoted, budget.ever_safe) == (demoted, ever_safe)


def test_a_step_that_succeeded_is_remembered_within_a_supervisor() -> None:
    """A failure after a safe point proves the script able; a later one before it is retried."""
    budget = Budget(3)
    budget.record(failure(fingerprint=None))
    early = failure(before_first_safe_point=True, fingerprint="mount")
    budget.record(early)
    assert decide(early, budget) == Retry()


def test_waits_grow_without_progress_and_start_over_with_it() -> None:
    """The first retry is immediate, later ones wait longer, and progress makes them short again."""
    budget, waits = Budget(100), []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def run() -> None:
        with contextlib.suppress(AttemptFailedError):
            async for attempt in retrying(budget, lambda: len(waits) == 8, sleep):
                with attempt:
                    if len(waits) == 4:
                        budget.refill(step=10, epoch=0)
                    budget.record(failure())
                    raise AttemptFailedError

    asyncio.run(run())
    assert waits[0] == waits[4] == 0.0
    for grows in (waits[:4], waits[4:]):
        assert grows == sorted(grows)
        assert grows[-1] >= 4.0


def error(**facts: str) -> dict[str, str]:
    return {"type": "ValueError", "message": "bad", "frame": "train.py:3 main", **facts}


def test_fingerprint_ignores_what_changes_from_time_to_time() -> None:
    """Numbers, addresses, dates and hashes do not make two failures differ; the rest does."""
    texts = (
        "sample 17 at 0x7f11 on 2026-11-23 10:11:12 in deadbeef01",
        "sample 4 at 0xaa00 on 2025-01-02 01:02:03 in 0123456789ab",
    )
    first, second = (fingerprint(error(message=text), 1) for text in texts)
    assert first == second
    different = [error(), error(type="KeyError"), error(message="worse"), error(frame="other:1 f")]
    assert len({fingerprint(e, 1) for e in different}) == 4
    assert fingerprint(None, 3) != fingerprint(None, 4)


@pytest.mark.parametrize("number", [9, 15, 2, 1])
def test_signals_from_outside_have_no_fingerprint(number: int) -> None:
    """Two kills at the same step are chance."""
    assert fingerprint(None, -number) is None
    assert fingerprint(None, -11) is not None


@pytest.mark.parametrize("value", ["0.25", "-0.25", "2.5e-05", "1e+09", "3", "+7"])
def test_fingerprint_ignores_numbers_however_they_are_written(value: str) -> None:
    """Python writes a small loss with an exponent and a negative one with a sign."""
    expected = fingerprint(error(message="loss is 17, which is too much"), 1)
    assert fingerprint(error(message=f"loss is {value}, which is too much"), 1) == expected


@pytest.mark.parametrize("number", [9, 15, 2, 1])
def test_signals_from_outside_have_no_fingerprint_behind_a_shell(number: int) -> None:
    """A shell between us and the script turns the signal into a status, 128 higher."""
    assert fingerprint(None, 128 + number) is None
    assert fingerprint(None, 128 + 11) is not None
