"""The loop over attempts: tenacity's, with waits that begin anew with each progress."""

import copy
from collections.abc import Awaitable, Callable

import tenacity

from orchestrator.supervisor.recovery.failure_budget import FailureBudget

FIRST_DELAY_SECONDS = 0.0
SECOND_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 60.0
JITTER_SECONDS = 0.5


class AttemptFailedError(Exception):
    """Tells tenacity that an attempt failed and is to be repeated."""


class _WaitByBudget(tenacity.wait.wait_base):
    """Another wait, asked as if the attempts had begun at the last checkpoint.

    tenacity counts attempts over its whole call, which here is the whole run, so that its own
    exponential wait would never become short again.
    """

    def __init__(self, budget: FailureBudget, wait: tenacity.wait.wait_base) -> None:
        self._budget = budget
        self._wait = wait

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        state = copy.copy(retry_state)
        state.attempt_number = max(1, self._budget.spent)
        return self._wait(state)


def retrying(
    budget: FailureBudget, sleep: Callable[[float], Awaitable[None]]
) -> tenacity.AsyncRetrying:
    """Tenacity's loop over attempts: at once after the first failure, then 1 s, 2 s, ... 60 s."""
    later = tenacity.wait_exponential_jitter(
        multiplier=SECOND_DELAY_SECONDS / 2, max=LONGEST_DELAY_SECONDS, jitter=JITTER_SECONDS
    )
    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(AttemptFailedError),
        wait=_WaitByBudget(
            budget, tenacity.wait_chain(tenacity.wait_fixed(FIRST_DELAY_SECONDS), later)
        ),
        sleep=sleep,
    )
