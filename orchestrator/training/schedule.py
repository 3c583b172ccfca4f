"""When the next checkpoint and the next snapshot are due."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.config import Every

FIRST_RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 300.0
NEVER = 1 << 62
# A new measurement counts so much; an interval stays until the measured cost is off by a quarter.
NEW_SHARE = 0.3
HYSTERESIS = 0.25


@dataclass
class Schedule:
    """When the next periodic checkpoint is due, as the two numbers that the hot path compares."""

    every: Every
    next_step: int = 0
    next_time_ns: int = 0
    next_epoch: int = NEVER
    _failures: int = 0

    def begun(self, step: int, epoch: int, least_seconds: float = 0.0) -> None:
        """A checkpoint is being written.

        Where time decides, the next one follows no sooner than ``least_seconds`` later.
        """
        self.next_step = self.next_time_ns = self.next_epoch = NEVER
        match self.every.unit:
            case "seconds":
                seconds = max(self.every.amount, least_seconds)
                self.next_time_ns = time.monotonic_ns() + int(seconds * 1e9)
            case "steps":
                self.next_step = _next_multiple(step, int(self.every.amount))
            case "epochs":
                self.next_epoch = _next_multiple(epoch, int(self.every.amount))

    def succeeded(self) -> None:
        """It has been written."""
        self._failures = 0

    def failed(self) -> float:
        """A write failed: try again soon, then ever more rarely. Returns in how many seconds."""
        delay: float = min(FIRST_RETRY_SECONDS * 2**self._failures, LONGEST_RETRY_SECONDS)
        self._failures += 1
        self.next_step = self.next_epoch = NEVER
        self.next_time_ns = time.monotonic_ns() + int(delay * 1e9)
        return delay

    @property
    def is_counted(self) -> bool:
        """Whether the user named the places where to save, and did not just say how often."""
        return self.every.unit != "seconds"

    def is_due(self, step: int, epoch: int) -> bool:
        """Whether a checkpoint should be written now."""
        return (
            step >= self.next_step
            or epoch >= self.next_epoch
            or time.monotonic_ns() >= self.next_time_ns
        )


def _next_multiple(count: int, interval: int) -> int:
    return (count // interval + 1) * interval


class Pace:
    """The interval at which something with a measured cost takes at most ``budget`` of the time.

    Without a budget it is never due. The first two are due at once: nothing is known yet, and the
    first costs more than those that follow.
    """

    def __init__(
        self, budget: float | None, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._budget = budget
        self._clock_ns = clock_ns
        self._warm = False
        self._cost_seconds: float | None = None
        self.interval_seconds: float | None = None
        self.next_ns = 0 if budget is not None else NEVER

    def took(self, seconds: float) -> None:
        """One has been done at this cost; the next is due an interval later."""
        if self._budget is None:
            return
        if not self._warm:
            self._warm = True
            return
        before = self._cost_seconds
        cost = seconds if before is None else before + NEW_SHARE * (seconds - before)
        self._cost_seconds = cost
        wanted = cost / self._budget
        if self.interval_seconds is None or not (
            1 - HYSTERESIS <= wanted / self.interval_seconds <= 1 + HYSTERESIS
        ):
            self.interval_seconds = wanted
        self.next_ns = self._clock_ns() + int(self.interval_seconds * 1e9)
