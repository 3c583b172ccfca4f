"""The loop over attempts: tenacity's, with waits that begin anew with each progress."""

import random
from collections.abc import Awaitable, Callable

import tenacity

from orchestrator.supervisor.recovery.failure_budget import FailureBudget

FIRST_DELAY_SECONDS = 0.0
SECOND_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 60.0
JITTER_SECONDS = 0.5
MOST_DOUBLINGS = 16  # far above the longest delay, far below what a float can hold


class AttemptFailedError(Exception):
    """Tells tenacity that an attempt failed and is to be repeated."""


def retrying(
    budget: FailureBudget, sleep: Callable[[float], Awaitable[None]]
) -> tenacity.AsyncRetrying:
    """Return tenacity's loop over attempts, which waits ``delay_seconds`` between two of them.

    The budget counts the failures. tenacity counts attempts over its whole call, which here is the
    whole run, so that its own exponential wait would never become short again.
    """
    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(AttemptFailedError),
        wait=lambda _: delay_seconds(budget.spent),
        sleep=sleep,
    )


def delay_seconds(failures: int) -> float:
    """Return the wait after that many failures in a row: none after the first, then 1 s, 2 s, ...

    At most LONGEST_DELAY_SECONDS; the jitter keeps runs apart that fail at the same time.
    """
    if failures <= 1:
        return FIRST_DELAY_SECONDS
    doubled = SECOND_DELAY_SECONDS * 2.0 ** min(failures - 2, MOST_DOUBLINGS)
    return min(doubled + random.uniform(0, JITTER_SECONDS), LONGEST_DELAY_SECONDS)
