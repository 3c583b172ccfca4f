"""Which checkpoints to keep: a pure function from facts to a set of names."""

import math
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Self

from orchestrator.checkpoint.checkpoint import PublicationOrder

MINIMUM_KEEP = 2
DEFAULT_KEEP = 3
KEEP_ALL = sys.maxsize


@dataclass(frozen=True)
class Candidate:
    """The facts about one verified checkpoint of this run that retention depends on."""

    name: str
    order: PublicationOrder
    healthy: bool
    pinned: bool
    metrics: dict[str, float]


@dataclass(frozen=True)
class BestPolicy:
    """Keep the ``count`` checkpoints with the lowest or highest value of a metric."""

    metric: str
    mode: Literal["min", "max"]
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``METRIC:min`` or ``METRIC:max:COUNT``. Raises ValueError."""
        match = re.fullmatch(r"(\w+):(min|max)(?::([1-9]\d*))?", text.strip())
        if match is None:
            raise ValueError("write METRIC:min or METRIC:max, with :COUNT for more than one")
        return cls(match[1], "min" if match[2] == "min" else "max", int(match[3] or 1))


@dataclass(frozen=True)
class RetentionPolicy:
    """Keep the newest ``keep`` (at least 2), and the best by a metric if ``best`` is given."""

    keep: int = DEFAULT_KEEP
    best: BestPolicy | None = None


def names_to_keep(
    candidates: Collection[Candidate], policy: RetentionPolicy, in_use: Collection[str] = ()
) -> set[str]:
    """Return the names that must stay; the others may be deleted.

    ``candidates`` are valid checkpoints only, so that a damaged one never pushes a good one out.
    A non-finite one does not count towards ``keep`` either, for the same reason. ``in_use`` are
    names that a process may be reading, such as the checkpoint that was resumed from.
    """
    healthy = sorted((c for c in candidates if c.healthy), key=lambda c: c.order)
    keep = max(policy.keep, MINIMUM_KEEP)
    newest = {c.name for c in healthy[-keep:]}
    oldest_counted = next((c.order for c in healthy if c.name in newest), None)
    unhealthy = sorted((c for c in candidates if not c.healthy), key=lambda c: c.order)
    # They show what went wrong; but a diverged run that keeps saving must not fill the disk.
    recent_unhealthy = {
        c.name for c in unhealthy[-keep:] if oldest_counted is None or c.order > oldest_counted
    }
    pinned = {c.name for c in candidates if c.pinned}
    return newest | recent_unhealthy | pinned | _best(healthy, policy.best) | set(in_use)


def _best(healthy: list[Candidate], best: BestPolicy | None) -> set[str]:
    if best is None:
        return set()
    # NaN has no order: a single one would leave the result to chance.
    scored = [c for c in healthy if not math.isnan(c.metrics.get(best.metric, math.nan))]
    sign = 1 if best.mode == "min" else -1
    # On equal values the earlier one wins: a later tie is no improvement.
    scored.sort(key=lambda c: (sign * c.metrics[best.metric], c.order))
    return {c.name for c in scored[: best.count]}
