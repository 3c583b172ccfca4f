"""How long a run trained before each of its newest failures."""

from dataclasses import dataclass, field
from typing import Any, TypeGuard

RECENT_FAILURES = 10
LONGEST_SECONDS = 1e9


@dataclass(frozen=True)
class FailureRate:
    """``count`` failures, at least one, in ``seconds`` of training before this attempt."""

    count: int
    seconds: float

    def mean_seconds(self, running_seconds: float) -> float:
        """Return the mean time between failures, this long after the attempt has begun."""
        return (self.seconds + running_seconds) / self.count


@dataclass
class FailureTimes:
    """The training time before each failure, over all attempts and supervisors of a run.

    Attributes:
        before: The seconds of training before each of the newest failures, the newest last.
        since: The seconds of training since the last one, in attempts that have ended.
    """

    before: list[float] = field(default_factory=list)
    since: float = 0.0

    def add(self, end: dict[str, Any]) -> None:
        """Add the journal's event of an attempt's end; one that never trained does not count."""
        seconds = end.get("seconds")
        if not end.get("reached_safe_point") or not is_duration(seconds):
            return
        self.since += seconds
        if end.get("outcome") == "failed":
            self.before = [*self.before, self.since][-RECENT_FAILURES:]
            self.since = 0.0

    def rate(self) -> FailureRate | None:
        """Return how many failures there were in how much training; None without a failure."""
        return FailureRate(len(self.before), sum(self.before) + self.since) if self.before else None


def is_duration(seconds: object) -> TypeGuard[float]:
    """Return whether this can be how many seconds something took."""
    return isinstance(seconds, int | float) and 0 <= seconds < LONGEST_SECONDS
