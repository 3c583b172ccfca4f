"""What a report tells of a run, collected from its directory."""

import contextlib
import shlex
from dataclasses import dataclass
from itertools import islice
from typing import Any

from orchestrator.checkpoint.description import description_of
from orchestrator.checkpoint.store import Store
from orchestrator.client import status_of, store_of
from orchestrator.errors import OrchestratorError
from orchestrator.run_report.attempts import AttemptRow, attempt_rows
from orchestrator.run_report.remarks import remarks
from orchestrator.run_report.svg_chart import Chart, chart_of
from orchestrator.rundir.identity import ADVICE
from orchestrator.rundir.journal import utc_now
from orchestrator.rundir.journal_end import newest_events
from orchestrator.rundir.metric_samples import sample_metrics
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.records import read_record
from orchestrator.supervisor.recovery.output_tail import end_of

MOST_EVENTS = 20_000
MOST_EVENT_BYTES = 16 << 20
MOST_ATTEMPTS = 200
MOST_CHECKPOINTS = 200
CURVE_PARTS = 400
OUTPUT_LINES = 40


@dataclass(frozen=True)
class ReportFacts:
    """All that the page shows; any text in it may be another user's or the trainer's."""

    made: str
    status: dict[str, Any]
    command: str
    begun: Any
    charts: list[Chart]
    attempts: list[AttemptRow]
    attempts_left_out: int
    checkpoints: list[dict[str, Any]]
    remarks: list[str]
    output: list[str]


def report_facts(run: RunDir) -> ReportFacts:
    """Read what a report tells of a run. Raises ConfigError where its journal cannot be read."""
    status = status_of(run)
    events = newest_events(run.journal_file, MOST_EVENTS, MOST_EVENT_BYTES)
    attempts = attempt_rows(events)
    resumed_at = [row.resume_step for row in attempts if row.resume_step is not None]
    identity = read_record(run.run_file, ADVICE) or {}
    words = identity.get("command")
    words = words if isinstance(words, list) else []
    metrics = sample_metrics(run.metrics_file, CURVE_PARTS)
    return ReportFacts(
        made=utc_now(),
        status=status,
        command=shlex.join(word for word in words if isinstance(word, str)),
        begun=identity.get("created"),
        charts=[chart_of(samples, resumed_at) for samples in metrics],
        attempts=attempts[-MOST_ATTEMPTS:],
        attempts_left_out=max(0, len(attempts) - MOST_ATTEMPTS),
        checkpoints=_checkpoints(store_of(run)),
        remarks=remarks(status, events),
        output=_output(run),
    )


def _checkpoints(store: Store) -> list[dict[str, Any]]:
    """Return the newest checkpoints, the newest first, as their manifests describe them."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(OrchestratorError):
        for checkpoint in islice(store.newest_first(), MOST_CHECKPOINTS):
            found.append({"name": checkpoint.name, **description_of(checkpoint)})
    return found


def _output(run: RunDir) -> list[str]:
    with contextlib.suppress(OSError):
        if number := run.last_attempt():
            return end_of(run.attempt(number).output_file)[-OUTPUT_LINES:]
    return []
