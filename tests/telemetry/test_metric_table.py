"""The metrics for Prometheus: what a status gives, and what the page of the reference says."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.telemetry.metric_table import (
    LONGEST_LABEL,
    METRICS,
    MOST_TRAINING_METRICS,
    PREFIX,
    RUN_LABELS,
    STATES,
)
from orchestrator.telemetry.progress import Progress
from orchestrator.telemetry.prometheus import prometheus_text
from orchestrator.telemetry.status import Status
from orchestrator.telemetry.status_reply import checked_status
from tests.telemetry.support import FULL

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "prometheus.md").read_text()
UNKNOWN = Status(run_id="0123", state="preparing", run_dir="runs/a")

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def series_of(*statuses: Status) -> Series:
    """Every series in the text about some runs, as a reader of the format finds it."""
    return series_in(status.to_json() for status in statuses)


def series_in(statuses: Iterable[dict[str, Any]]) -> Series:
    text = prometheus_text(statuses).decode()
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def one(series: Series, metric: str, /, **labels: str) -> float:
    (value,) = (
        value
        for (found, given), value in series.items()
        if found == PREFIX + metric and labels.items() <= dict(given).items()
    )
    return value


def test_page_lists_every_metric() -> None:
    """The table of the reference has each metric's type, labels and meaning, and no others."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \| (.*) \|$", PAGE, re.MULTILINE)
    assert rows == [
        (
            PREFIX + metric.name,
            "counter" if metric.is_counter else "gauge",
            ", ".join(f"`{label}`" for label in metric.labels),
            metric.help,
        )
        for metric in METRICS
    ]


def test_everything_that_is_known_is_a_series() -> None:
    """Each metric has its value, under the labels of the run."""
    series = series_of(FULL)
    assert {name for name, _ in series} == {PREFIX + metric.name for metric in METRICS}
    assert all(dict(labels).keys() >= {*RUN_LABELS} for _, labels in series)
    run = {"run": "a", "run_id": "0123"}
    assert one(series, "step", **run) == 40
    assert one(series, "progress_ratio") == pytest.approx(0.4)
    assert one(series, "checkpoint_age_seconds") == 5.5
    assert one(series, "lose_at_most_seconds") == 1
    assert one(series, "run_info", run_dir="runs/a") == 1
    assert one(series, "restarts_total", kind="killed") == 1
    assert one(series, "rank_step", rank="1") == 40
    assert one(series, "save_failed") == 1
    assert one(series, "training_metric", name="loss") == 0.5
    assert math.isnan(one(series, "training_metric", name="other"))
    states = [one(series, "run_state", state=state) for state in STATES]
    assert states == [float(state == "training") for state in STATES]


def test_what_is_unknown_has_no_series() -> None:
    """Before the first attempt there are its state, its directory, and the counts of nothing."""
    names = {name.removeprefix(PREFIX) for name, _ in series_of(UNKNOWN)}
    assert names == {"run_info", "run_state", "restarts_total", "save_failed"}
    at_step_0 = replace(UNKNOWN, progress=Progress.of(0, 0, 10), trained_steps=0)
    series = series_of(at_step_0)
    assert one(series, "step") == one(series, "training_steps_total") == 0


def test_restarts_without_a_recorded_kind_are_counted() -> None:
    """The kinds add up to all restarts, those that an earlier version has counted included."""
    series = series_of(
        replace(FULL, restarts=5, restarts_by_kind={"killed": 1, "hang": 2, "unknown": 9})
    )
    kinds = ("killed", "hang", "unknown")
    assert [one(series, "restarts_total", kind=kind) for kind in kinds] == [1, 2, 2]


def test_several_runs_have_series_of_their_own() -> None:
    """Of many runs each metric is one family, and of a run and its copy the first counts."""
    other, copy = replace(FULL, run_id="4567", attempt=7), replace(FULL, run_dir="copies/a")
    text = prometheus_text([FULL.to_json(), other.to_json()]).decode()
    assert text.count(f"# TYPE {PREFIX}step gauge") == 1
    series = series_of(FULL, other, copy)
    assert one(series, "attempt", run_id="4567") == 7
    assert one(series, "run_info", run_id="0123", run_dir="runs/a") == 1


HOSTILE = [
    "<script>alert(1)</script>",
    'quote " backslash \\ end\\',
    'x"} 1\norchestrator_step{run="a"} 5\n# HELP',
    "\r\x1b[2J\u202e\u2028",
    "lone \ud800 surrogate",
    "",
    "x" * 1_000_000,
    "x" * 1_000_001,
    "\n" * LONGEST_LABEL,
]


def test_names_from_a_script_are_escaped_and_bounded() -> None:
    """No name adds a line or a series, reaches a terminal unescaped, or is there twice."""
    metrics: dict[str, float | str] = dict.fromkeys(HOSTILE, 1.0)
    hostile = replace(FULL, metrics=metrics, run_dir="runs/" + HOSTILE[2].replace("/", ""))
    text = prometheus_text([hostile.to_json()])
    assert not set(text) & {*range(10), *range(11, 32)}
    series = series_of(hostile)
    assert {name for name, _ in series} == {PREFIX + metric.name for metric in METRICS}
    labels = [dict(given) for name, given in series if name == PREFIX + "training_metric"]
    assert len(labels) == len(HOSTILE) - 1
    assert all(len(value) <= LONGEST_LABEL for each in labels for value in each.values())
    assert HOSTILE[0] in {each["name"] for each in labels}


def test_number_of_series_is_bounded() -> None:
    """A script that reports thousands of metrics does not fill the database."""
    many = replace(FULL, metrics={f"m{number}": 0.0 for number in range(10_000)})
    kinds = replace(many, restarts_by_kind={f"k{number}": 1 for number in range(10_000)})
    names = [name for name, _ in series_of(kinds)]
    assert names.count(PREFIX + "training_metric") == MOST_TRAINING_METRICS
    assert len(names) < 200


def test_metrics_follow_from_an_answer_of_a_supervisor() -> None:
    """What a page hears from another process gives the same series as the file."""
    answer = checked_status(json.loads(json.dumps(FULL.to_json())))
    here, there = series_of(FULL), series_in([answer])
    assert here.keys() == there.keys()
