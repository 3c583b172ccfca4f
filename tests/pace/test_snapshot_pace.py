"""Snapshots of a run that fails often: Daly's interval, within bounds."""

import random

import pytest

from orchestrator.pace.best_interval import best_interval
from orchestrator.pace.snapshot_pace import MOST_SHARE, SnapshotPace
from orchestrator.rundir.failure_times import FailureRate
from tests.pace.support import Clock


def lost_share(interval: float, cost: float, mean: float, chance: random.Random) -> float:
    """Return which share of the time is lost to random failures, one each ``mean`` seconds."""
    wall = useful = 0.0
    while useful < 2000 * mean:
        left = chance.expovariate(1 / mean)
        done = int(left / (interval + cost))
        wall += left
        useful += done * interval
    return 1 - useful / wall


@pytest.mark.parametrize(("cost", "mean"), [(0.05, 20.0), (0.3, 20.0), (2.0, 300.0)])
def test_best_interval_loses_least(cost: float, mean: float) -> None:
    """Neither half nor twice the interval loses less time, to failures and snapshots together."""
    best = best_interval(cost, mean)
    lost = {
        factor: lost_share(factor * best, cost, mean, random.Random(1)) for factor in (0.5, 1, 2)
    }
    assert min(lost, key=lambda factor: lost[factor]) == 1


def test_interval_of_ever_more_failures_stays_positive() -> None:
    """Where failures come faster than a snapshot is taken, one is taken as often as they come."""
    assert best_interval(3.0, 1.0) == 1.0
    assert best_interval(2.0, 1.0001) > 0


def pace_of(failures: FailureRate | None, cost: float, clock: Clock) -> SnapshotPace:
    return SnapshotPace(0.01, cost, failures, clock)


def test_frequent_failures_shorten_the_interval() -> None:
    """A failure every 20 s and a cost of 0.3 s: every 3.3 s, not every 30."""
    pace = pace_of(FailureRate(3, 60.0), 0.3, Clock())
    assert pace.interval_seconds == pytest.approx(best_interval(0.3, 20.0))
    assert pace_of(None, 0.3, Clock()).interval_seconds == pytest.approx(30.0)


def test_rare_failures_leave_the_budget_as_it_is() -> None:
    """Failures never make snapshots rarer than the budget does."""
    pace = pace_of(FailureRate(1, 1e6), 0.3, Clock())
    assert pace.interval_seconds == pytest.approx(30.0)


def test_snapshots_take_a_fifth_of_the_time_at_most() -> None:
    """A run that fails all the time still trains for the rest of it."""
    pace = pace_of(FailureRate(10, 1.0), 0.3, Clock())
    assert pace.interval_seconds == pytest.approx(0.3 / MOST_SHARE)


def test_interval_grows_while_nothing_fails() -> None:
    """The time without a failure counts as well, so that an attempt that goes on pays less."""
    clock = Clock()
    pace = pace_of(FailureRate(1, 20.0), 0.3, clock)
    at_first = pace.interval_seconds
    clock.seconds += 10_000
    pace.record(0.3)
    pace.record(0.3)
    assert at_first is not None
    assert pace.interval_seconds == pytest.approx(30.0)
