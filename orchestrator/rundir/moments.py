"""When an event of the journal was, and how much time is between two of them."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

from orchestrator.rundir.failure_times import LONGEST_SECONDS, is_duration


class Span(NamedTuple):
    """Time between two moments, in seconds; neither is negative."""

    awake: float
    asleep: float = 0.0


@dataclass(frozen=True)
class Moment:
    """A moment of a run: by the clock of its machine, and by the uptime of its supervisor.

    ``uptime`` is None where a version of the program did not record it.
    """

    time: str | None = None
    uptime: float | None = None
    asleep: float = 0.0

    @classmethod
    def of(cls, event: dict[str, Any]) -> Self:
        """Return when an event of the journal was."""
        uptime, asleep = event.get("uptime_seconds"), event.get("asleep_seconds")
        return cls(
            event.get("time"),
            float(uptime) if is_duration(uptime) else None,
            float(asleep) if is_duration(asleep) else 0.0,
        )

    def until(self, later: "Moment") -> Span:
        """Return the time up to another moment of the same supervisor.

        By its uptime, which no clock that is set can change; by the clock where that is not known.
        """
        if self.uptime is None or later.uptime is None or later.uptime < self.uptime:
            return Span(self.by_clock_until(later))
        seconds = later.uptime - self.uptime
        asleep = min(max(0.0, later.asleep - self.asleep), seconds)
        return Span(seconds - asleep, asleep)

    def by_clock_until(self, later: "Moment") -> float:
        """Return the seconds up to a moment of another process or machine; 0 if it is earlier."""
        begin, end = _timestamp(self.time), _timestamp(later.time)
        if begin is None or end is None:
            return 0.0
        return min(max(0.0, end - begin), LONGEST_SECONDS)


def _timestamp(text: str | None) -> float | None:
    try:
        moment = datetime.fromisoformat(text or "")
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):  # another program may have written it
        return None
