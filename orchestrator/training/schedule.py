"""When the next checkpoint and the next snapshot are due."""

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.config import Every

FIRST_RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 300.0
NEVER = 1 << 62
# The cost is the median of so many measurements; an interval stays until that is off by a quarter.
REMEMBERED = 5
HYSTERESIS = 0.25
# After so many, first ones in a process, the next one follows after this share of the interval.
LEARNING = 3
LEARNING_SHARE = 0.1


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

    Without a budget it is never due. Otherwise the first is due at once, and is no measure, since
    it prepares what the others use. The next few follow soon: one measured in a bad moment is not
    to decide for long, and a process that lives shortly is to leave something. ``learned_seconds``
    is the interval that an earlier process came to.
    """

    def __init__(
        self,
        budget: float | None,
        learned_seconds: float | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._budget = budget
        self._clock_ns = clock_ns
        self._done = 0
        self._costs: deque[float] = deque(maxlen=REMEMBERED)
        self.interval_seconds: float | None = None
        self.next_ns = 0 if budget is not None else NEVER
        if budget is not None and learned_seconds is not None:
            self._costs.extend([learned_seconds * budget] * LEARNING)
            self.interval_seconds = learned_seconds

    def took(self, seconds: float) -> None:
        """One has been done at this cost; the next is due an interval later."""
        if self._budget is None:
            return
        if self._done > 0:
            self._learn(seconds, self._budget)
        self._done += 1
        if self.interval_seconds is not None:
            share = LEARNING_SHARE if self._done <= LEARNING else 1.0
            self.next_ns = self._clock_ns() + int(self.interval_seconds * share * 1e9)

    def _learn(self, seconds: float, budget: float) -> None:
        self._costs.append(seconds)
        wanted = statistics.median(self._costs) / budget
        if self.interval_seconds is None or not (
            1 - HYSTERESIS <= wanted / self.interval_seconds <= 1 + HYSTERESIS
        ):
            self.interval_seconds = wanted
