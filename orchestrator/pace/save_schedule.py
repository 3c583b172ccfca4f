"""When the next periodic checkpoint is due."""

import time
from dataclasses import dataclass

from orchestrator.config import Every

FIRST_RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 300.0
NEVER = 1 << 62


@dataclass
class Schedule:
    """When the next periodic checkpoint is due, as numbers that the hot path compares."""

    every: Every
    next_step: int = 0
    next_time_ns: int = 0
    next_epoch: int = NEVER
    _failures: int = 0

    def begin(self, step: int, epoch: int, least_seconds: float = 0.0) -> None:
        """Set the next time, step or epoch, now that a checkpoint is being written.

        Where time decides, the next checkpoint follows ``least_seconds`` later at the earliest.
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

    def record_success(self) -> None:
        """Record a successful write, which resets the retry delay."""
        self._failures = 0

    def record_failure(self) -> float:
        """Record a failed write; return in how many seconds the next is due.

        The delay doubles from one failure to the next.
        """
        delay: float = min(FIRST_RETRY_SECONDS * 2**self._failures, LONGEST_RETRY_SECONDS)
        self._failures += 1
        self.next_step = self.next_epoch = NEVER
        self.next_time_ns = time.monotonic_ns() + int(delay * 1e9)
        return delay

    @property
    def is_counted(self) -> bool:
        """Whether the user named steps or epochs at which to save, and not an interval of time."""
        return self.every.unit != "seconds"

    def is_due(self, step: int, epoch: int) -> bool:
        """Return whether a checkpoint should be written now."""
        return (
            step >= self.next_step
            or epoch >= self.next_epoch
            or time.monotonic_ns() >= self.next_time_ns
        )


def _next_multiple(count: int, interval: int) -> int:
    return (count // interval + 1) * interval
