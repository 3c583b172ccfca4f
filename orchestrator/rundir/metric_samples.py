"""Samples of the metrics in metrics.jsonl, for curves; the length of the file does not count."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, BinaryIO

from orchestrator.system.json_input import parse_object
from orchestrator.system.regular_files import open_regular

# Of each part of the file at most this much is read.
PART_BYTES = 1 << 12
LONGEST_LINE_BYTES = 1 << 16
MOST_METRICS = 24
# The difference of two such values, and their sum, are still numbers.
LARGEST_VALUE = 1e300


@dataclass(frozen=True)
class MetricSamples:
    """The means of a metric over parts of a run, each with the mean step, in the file's order."""

    name: str
    steps: list[float]
    values: list[float]


def sample_metrics(path: Path, parts: int) -> list[MetricSamples]:
    """Sample the metrics of a run in equal parts of the file, the loss of the training first.

    A metric without values in two parts is left out, and so are those beyond ``MOST_METRICS``.
    """
    try:
        with open(open_regular(path, os.O_RDONLY), "rb") as file:
            sampled = [[*_records(file, part, parts)] for part in range(parts)]
    except OSError:
        return []
    names = {name for records in sampled for record in records for name in record["metrics"]}
    chosen = sorted(names, key=_distance_from_loss)[:MOST_METRICS]
    return [samples for name in chosen if (samples := _samples_of(sampled, name)) is not None]


def _samples_of(sampled: list[list[dict[str, Any]]], name: str) -> MetricSamples | None:
    points = [point for records in sampled if (point := _mean(records, name)) is not None]
    if len(points) < 2:
        return None
    return MetricSamples(name, [step for step, _ in points], [value for _, value in points])


def _records(file: BinaryIO, part: int, parts: int) -> Iterator[dict[str, Any]]:
    """Yield what is recorded on the lines that begin in a part of the file, up to a limit."""
    size = os.fstat(file.fileno()).st_size
    begin, end = size * part // parts, size * (part + 1) // parts
    file.seek(max(0, begin - 1))
    if begin > 0:
        file.readline(LONGEST_LINE_BYTES)
    end = min(end, file.tell() + PART_BYTES)
    while file.tell() < end and (line := file.readline(LONGEST_LINE_BYTES)):
        with contextlib.suppress(ValueError):
            record = parse_object(line)
            if type(record.get("step")) is int and isinstance(record.get("metrics"), dict):
                yield record


def _distance_from_loss(name: str) -> tuple[bool, bool, bool, str]:
    return name != "loss", "loss" not in name, "val" in name, name


def _mean(records: list[dict[str, Any]], name: str) -> tuple[float, float] | None:
    """Return the mean step and the mean value; None where no record has a value for a curve."""
    found = [
        (record["step"], value)
        for record in records
        if isinstance(value := record["metrics"].get(name), int | float)
        and abs(value) <= LARGEST_VALUE
    ]
    if not found:
        return None
    return fmean(step for step, _ in found), fmean(value for _, value in found)
