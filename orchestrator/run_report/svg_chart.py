"""The points of a curve in a picture of its own size, for an SVG polyline."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.rundir.metric_samples import MetricSamples

WIDTH, HEIGHT = 720, 180


@dataclass(frozen=True)
class Chart:
    """A curve as text of an SVG picture, with the ends of its axes.

    ``restarts`` are the places on the horizontal axis at which an attempt has resumed.
    """

    name: str
    points: str
    lowest: float
    highest: float
    first_step: float
    last_step: float
    last_value: float
    restarts: list[float]


def chart_of(samples: MetricSamples, resumed_at: Sequence[int]) -> Chart:
    """Lay out a curve, with the steps at which attempts have resumed."""
    first, last = min(samples.steps), max(samples.steps)
    low, high = min(samples.values), max(samples.values)

    def across(step: float) -> float:
        return round((step - first) / ((last - first) or 1) * WIDTH, 1)

    def down(value: float) -> float:
        return round((high - value) / ((high - low) or 1) * HEIGHT, 1)

    pairs = zip(samples.steps, samples.values, strict=True)
    return Chart(
        name=samples.name,
        points=" ".join(f"{across(step)},{down(value)}" for step, value in pairs),
        lowest=low,
        highest=high,
        first_step=first,
        last_step=last,
        last_value=samples.values[-1],
        restarts=sorted({across(step) for step in resumed_at if first <= step <= last}),
    )
