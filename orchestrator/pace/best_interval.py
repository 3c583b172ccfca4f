"""The interval between snapshots at which a run that fails loses the least time."""

import math


def best_interval(cost_seconds: float, mean_seconds: float) -> float:
    """Return the seconds between snapshots at which they and what is done twice cost the least.

    ``cost_seconds`` is the cost of a snapshot, ``mean_seconds`` the mean time between failures. The
    estimate is that of J. T. Daly, "A higher order estimate of the optimum checkpoint interval for
    restart dumps" (2006); its first term is J. W. Young's of 1974.
    """
    if cost_seconds >= 2 * mean_seconds:
        return mean_seconds
    ratio = math.sqrt(cost_seconds / (2 * mean_seconds))
    first = math.sqrt(2 * cost_seconds * mean_seconds)
    return first * (1 + ratio / 3 + ratio * ratio / 9) - cost_seconds
