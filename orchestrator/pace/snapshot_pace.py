"""How often snapshots are taken, as their measured cost allows."""

import statistics
import time
from collections import deque
from collections.abc import Callable

from orchestrator.pace.best_interval import best_interval
from orchestrator.pace.save_schedule import NEVER
from orchestrator.rundir.failure_times import FailureRate

# The cost is the median of this many measurements.
REMEMBERED = 5
# The interval changes only when it is off by more than this share.
HYSTERESIS = 0.25
# After each of this many first snapshots, the next one follows after this share of the interval.
LEARNING = 3
LEARNING_SHARE = 0.1
# Failures can call for more than the budget, and at most for this share of the time.
MOST_SHARE = 0.2


class SnapshotPace:
    """The interval at which something with a measured cost takes at most ``budget`` of the time.

    Where the run fails often, the interval is shorter: the one that loses the least time in all.

    Without a budget it is never due. Otherwise the first is due at once; it is not measured, since
    it prepares what the later ones use. The next few follow soon: a measurement from a bad moment
    must not decide for long, and a process that soon ends must leave a snapshot.

    Attributes:
        cost_seconds: What one costs; None before the first measurement.
        interval_seconds: The interval that follows from it; None before that.
        next_ns: When the next one is due (time.monotonic_ns).
    """

    def __init__(
        self,
        budget: float | None,
        learned_cost: float | None = None,
        failures: FailureRate | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Begin with the cost in seconds that an earlier process has learned, if there is one."""
        self._budget = budget
        self._failures = failures
        self._clock_ns = clock_ns
        self._began_ns = clock_ns()
        self._done = 0
        self._costs: deque[float] = deque(maxlen=REMEMBERED)
        self.cost_seconds: float | None = None
        self.interval_seconds: float | None = None
        self.next_ns = 0 if budget is not None else NEVER
        if budget is not None and learned_cost is not None:
            self._costs.extend([learned_cost] * LEARNING)
            self.cost_seconds = learned_cost
            self.interval_seconds = self._wanted(learned_cost, budget)

    def record(self, seconds: float) -> None:
        """Record that one was done at this cost; the next is due an interval later."""
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
        self.cost_seconds = statistics.median(self._costs)
        wanted = self._wanted(self.cost_seconds, budget)
        if self.interval_seconds is None or not (
            1 - HYSTERESIS <= wanted / self.interval_seconds <= 1 + HYSTERESIS
        ):
            self.interval_seconds = wanted

    def _wanted(self, cost: float, budget: float) -> float:
        within_budget = cost / budget
        if self._failures is None:
            return within_budget
        running_seconds = (self._clock_ns() - self._began_ns) / 1e9
        best = best_interval(cost, self._failures.mean_seconds(running_seconds))
        return min(within_budget, max(best, cost / MOST_SHARE))
