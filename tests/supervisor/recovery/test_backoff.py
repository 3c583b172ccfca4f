"""How long the waits between attempts are."""

import asyncio

from orchestrator.supervisor.recovery.backoff import (
    LONGEST_DELAY_SECONDS,
    AttemptFailedError,
    delay_seconds,
    retrying,
)
from orchestrator.supervisor.recovery.failure_budget import AttemptEnd, FailureBudget
from orchestrator.supervisor.recovery.symptoms import Kind


def test_waits_grow_without_progress_and_start_over_with_it() -> None:
    """The first retry is immediate, later ones wait longer, and progress makes them short again."""
    budget, waits = FailureBudget(100), []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def run() -> None:
        async for attempt in retrying(budget, sleep):
            with attempt:
                if len(waits) == 8:
                    return
                if len(waits) == 4:
                    budget.refill(step=10, epoch=0)
                budget.record(AttemptEnd(Kind.EXCEPTION))
                raise AttemptFailedError

    asyncio.run(run())
    assert waits[0] == waits[4] == 0.0
    for grows in (waits[:4], waits[4:]):
        assert grows == sorted(grows)
        assert grows[-1] >= 4.0


def test_waits_stay_within_the_longest() -> None:
    """However often a run has failed, the wait is the longest one and can be calculated."""
    assert [delay_seconds(failures) for failures in (20, 5000)] == [LONGEST_DELAY_SECONDS] * 2
