"""How long a run trained before each of its newest failures."""

from dataclasses import dataclass, field
from typing import Any, TypeGuard

RECENT_FAILURES = 10
LONGEST_SECONDS = 1e9


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

    def rate(self) -> dict[str, Any] | None:
        """Return ``count`` and ``seconds``, how many failures in how much training; None: none."""
        if not self.before:
            return None
        return {"count": len(self.before), "seconds": sum(self.before) + self.since}


def is_duration(seconds: object) -> TypeGuard[float]:
    """Return whether this can be how many seconds something took."""
    return isinstance(seconds, int | float) and 0 <= seconds < LONGEST_SECONDS
