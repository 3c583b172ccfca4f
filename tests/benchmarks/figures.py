"""The result of a measurement, and its output as a table or as JSON."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

REPEATS = 9


@dataclass
class Figure:
    """One measured value, and its floor from the same run.

    ``target`` is an upper bound of the value or, if ``relative``, of its ratio to the floor. A
    figure without a target explains others. ``load`` is the load average before the measurement.
    """

    name: str
    unit: str
    value: float
    floor: float
    floor_name: str
    target: float | None = None
    relative: bool = False
    spread: tuple[float, float] | None = None
    load: float = 0.0

    @property
    def ratio(self) -> float | None:
        """The ratio of the value to the floor; None for a floor of 0 or less."""
        return self.value / self.floor if self.floor > 0 else None

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.target is None:
            return None
        compared = self.ratio if self.relative else self.value
        return compared is not None and compared <= self.target


def paired(
    name: str,
    values: Sequence[float],
    floors: Sequence[float],
    floor_name: str,
    target: float | None = None,
    unit: str = "s",
) -> Figure:
    """Return a figure of the medians of a value and its floor, which were measured in turns."""
    figure = Figure(
        name, unit, statistics.median(values), statistics.median(floors), floor_name, target, True
    )
    figure.spread = (min(values), max(values))
    return figure


def median_seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def show(figures: list[Figure], notes: list[str]) -> None:
    title = f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    table = Table(title=title)
    for name in ("what", "measured", "floor", "ratio", "target", "met"):
        table.add_column(name)
    for figure in figures:
        spread = f" ({figure.spread[0]:.3g} to {figure.spread[1]:.3g})" if figure.spread else ""
        table.add_row(
            figure.name,
            f"{figure.value:.3g} {figure.unit}{spread}",
            f"{figure.floor:.3g} ({figure.floor_name})",
            "" if figure.ratio is None else f"{figure.ratio:.2f}",
            _target(figure),
            {True: "yes", False: "NO", None: ""}[figure.is_met],
        )
    console = Console(width=None if sys.stdout.isatty() else 170)
    console.print(table)
    for note in notes:
        console.print(note)


def _target(figure: Figure) -> str:
    if figure.target is None:
        return ""
    return f"{'ratio' if figure.relative else ''} at most {figure.target:g}".strip()


def write_json(path: Path, figures: list[Figure], notes: list[str]) -> None:
    rows = [asdict(f) | {"ratio": f.ratio, "met": f.is_met} for f in figures]
    path.write_text(json.dumps({"figures": rows, "notes": notes}, indent=2) + "\n")
