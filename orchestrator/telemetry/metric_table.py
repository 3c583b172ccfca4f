"""The metrics of a run for Prometheus: their names and meaning, and how a status gives them.

A status is the object of `status --json`. The table follows the conventions of Prometheus: base
units, `_total` only at the end of what counts up, and a label for each thing that is told apart.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.system.text import shown_line
from orchestrator.telemetry.run_state import State

PREFIX = "orchestrator_"
COUNTER_SUFFIX = "_total"
# Every sample has them: they tell the runs of a machine apart.
RUN_LABELS = ("run", "run_id")
# For runs without a supervisor `status` has three more than the supervisor.
STATES = (*State, "new", "interrupted", "running")
UNKNOWN_KIND = "unknown"
# A script may log any number of metrics, under names of any length.
MOST_TRAINING_METRICS = 50
MOST_KINDS = 50
LONGEST_LABEL = 200

StatusObject = dict[str, Any]
Sample = tuple[tuple[str, ...], float]
"""The values of a metric's own labels, and its number."""


@dataclass(frozen=True)
class Metric:
    """One metric; ``labels`` are those beside RUN_LABELS. What is unknown has no sample."""

    name: str
    help: str
    samples: Callable[[StatusObject], Iterator[Sample]]
    labels: tuple[str, ...] = ()

    @property
    def is_counter(self) -> bool:
        """Whether it only counts up, until another supervisor begins anew."""
        return self.name.endswith(COUNTER_SUFFIX)


def run_labels(status: StatusObject) -> tuple[str, ...]:
    """Return the values of RUN_LABELS."""
    return _label(os.path.basename(status["run_dir"])), _label(status["run_id"])


def _value(*path: str, factor: float = 1.0) -> Callable[[StatusObject], Iterator[Sample]]:
    """Return a reader of the number at this place in the status, times a factor."""

    def samples(status: StatusObject) -> Iterator[Sample]:
        value: Any = status
        for key in path:
            value = None if value is None else value[key]
        if value is not None:
            yield (), value * factor

    return samples


def _states(status: StatusObject) -> Iterator[Sample]:
    for state in STATES:
        yield (state,), float(state == status["state"])


def _run_directory(status: StatusObject) -> Iterator[Sample]:
    yield (_label(status["run_dir"]),), 1.0


def _restarts(status: StatusObject) -> Iterator[Sample]:
    kinds: dict[str, int] = dict(list(status["restarts_by_kind"].items())[:MOST_KINDS])
    counts = {_label(kind): count for kind, count in kinds.items()}
    counts.pop(UNKNOWN_KIND, None)
    # What an earlier version has counted has no kind.
    counts[UNKNOWN_KIND] = max(0, status["restarts"] - sum(counts.values()))
    for kind, count in counts.items():
        yield (kind,), count


def _training_metrics(status: StatusObject) -> Iterator[Sample]:
    # Two names may become one when they are shortened: a series must not be there twice.
    values: dict[str, float] = {}
    for name, value in status["metrics"].items():
        values.setdefault(_label(name), float(value))
        if len(values) == MOST_TRAINING_METRICS:
            break
    for name, value in values.items():
        yield (name,), value


def _rank_steps(status: StatusObject) -> Iterator[Sample]:
    steps = {str(rank["rank"]): rank["step"] for rank in status["ranks"] or ()}
    for rank, step in steps.items():
        yield (rank,), step


def _times(status: StatusObject) -> Iterator[Sample]:
    goodput = status["goodput"]
    if goodput["wall_seconds"]:
        yield from (((part,), seconds) for part, seconds in goodput["seconds"].items())


def _supervisor_seen(status: StatusObject) -> Iterator[Sample]:
    if status["supervisor_pid"] is not None:
        yield (), time.time()


def _save_failed(status: StatusObject) -> Iterator[Sample]:
    yield (), float(status["problem"] is not None)


def _label(text: str) -> str:
    return shown_line(text)[:LONGEST_LABEL]


METRICS = (
    Metric("run_info", "The run directory; the value is 1.", _run_directory, ("run_dir",)),
    Metric(
        "run_state", "1 for the state that the run is in, 0 for the others.", _states, ("state",)
    ),
    Metric(
        "supervisor_seen_timestamp_seconds",
        "Unix time of these metrics; absent for a run without a supervisor.",
        _supervisor_seen,
    ),
    Metric("attempt", "Number of the newest attempt.", _value("attempt")),
    Metric(
        "restarts_total",
        "Restarts of the run over all its supervisors, by what ended the attempt before.",
        _restarts,
        ("kind",),
    ),
    Metric(
        "training_steps_total",
        "Steps that trainers have completed under this supervisor, with those done again.",
        _value("trained_steps"),
    ),
    Metric("step", "Completed steps of the training.", _value("progress", "step")),
    Metric("planned_steps", "Steps of the whole training.", _value("progress", "total_steps")),
    Metric("epoch", "Completed epochs of the training.", _value("progress", "epoch")),
    Metric("planned_epochs", "Epochs of the whole training.", _value("progress", "total_epochs")),
    Metric(
        "progress_ratio",
        "Part of the training that is complete, from 0 to 1.",
        _value("progress", "percent", factor=0.01),
    ),
    Metric(
        "steps_per_second",
        "Recent pace, with evaluations, saves and restarts.",
        _value("progress", "steps_per_second"),
    ),
    Metric(
        "time_left_seconds",
        "Time until the end of the training at the recent pace.",
        _value("progress", "seconds_left"),
    ),
    Metric(
        "training_metric",
        f"Newest value of what the loop reports; at most {MOST_TRAINING_METRICS} names.",
        _training_metrics,
        ("name",),
    ),
    Metric(
        "run_time_seconds",
        "Wall time of the run by what it was spent for; what is done again is no training.",
        _times,
        ("part",),
    ),
    Metric("rank_step", "Completed steps of each of several ranks.", _rank_steps, ("rank",)),
    Metric(
        "lose_at_most_seconds",
        "Training that a kill of the trainer would lose now.",
        _value("lose_at_most_seconds"),
    ),
    Metric(
        "machine_loses_at_most_seconds",
        "Training that the end of the machine would lose now.",
        _value("machine_loses_at_most_seconds"),
    ),
    Metric(
        "checkpoint_age_seconds",
        "Age of the newest checkpoint on disk.",
        _value("newest_checkpoint", "age_seconds"),
    ),
    Metric(
        "checkpoint_step",
        "Step of the newest checkpoint on disk.",
        _value("newest_checkpoint", "step"),
    ),
    Metric("save_failed", "1 if the last save failed, 0 after a successful one.", _save_failed),
    Metric(
        "snapshot_age_seconds",
        "Age of the newest snapshot in memory.",
        _value("newest_snapshot", "age_seconds"),
    ),
    Metric("snapshot_step", "Step of the newest snapshot.", _value("newest_snapshot", "step")),
    Metric("snapshot_size_bytes", "Size of a snapshot.", _value("snapshots", "bytes")),
    Metric(
        "snapshot_interval_seconds",
        "Time from one snapshot to the next.",
        _value("snapshots", "interval_seconds"),
    ),
    Metric(
        "snapshot_stall_seconds",
        "Time for which the loop waited for the last snapshot.",
        _value("snapshots", "stall_seconds"),
    ),
    Metric(
        "snapshot_write_seconds",
        "Time that the last write of a snapshot to disk took.",
        _value("snapshots", "write_seconds"),
    ),
    Metric(
        "failure_interval_seconds",
        "Mean time between the last failures.",
        _value("snapshots", "failure_seconds"),
    ),
    Metric(
        "silent_seconds",
        "Time since the trainer's last sign of life.",
        _value("silent_seconds"),
    ),
    Metric(
        "hang_timeout_seconds",
        "Silence after which the trainer counts as hung.",
        _value("hang_budget_seconds"),
    ),
    Metric("spare_memory_bytes", "Memory that the spare takes.", _value("spare", "bytes")),
)
"""All of them; what a status tells in addition becomes a metric by one more row."""
