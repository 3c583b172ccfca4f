"""The recent pace of a run, over the restarts of its trainer."""

from typing import NamedTuple

WINDOW_SECONDS = 3600.0
# The newest report takes the place of the one before it while that is nearer than this.
SPACING_SECONDS = 10.0
SHORTEST_SECONDS = 1.0


class _Report(NamedTuple):
    seconds: float
    step: int


class RecentPace:
    """The steps between the first and the last report of the past hour, by the time between them.

    All of that time counts: evaluations, saves, restarts. Steps that are done again after a restart
    count once. The two newest reports count, however old they are, since one step may take an hour.
    A trainer that begins before all that was reported begins anew.
    """

    def __init__(self) -> None:
        self._reports: list[_Report] = []

    def report(self, seconds: float, step: int) -> None:
        """Record that ``step`` is complete at a monotonic time."""
        reports, new = self._reports, _Report(seconds, step)
        if reports and step < reports[0].step:
            reports.clear()
        if len(reports) > 1 and new.seconds - reports[-2].seconds < SPACING_SECONDS:
            reports.pop()
        reports.append(new)
        while len(reports) > 2 and reports[0].seconds < seconds - WINDOW_SECONDS:
            del reports[0]

    @property
    def steps_per_second(self) -> float | None:
        """The pace; None before it is known, and while it is not above zero."""
        if not self._reports:
            return None
        first, last = self._reports[0], self._reports[-1]
        seconds, steps = last.seconds - first.seconds, last.step - first.step
        return steps / seconds if steps > 0 and seconds >= SHORTEST_SECONDS else None
