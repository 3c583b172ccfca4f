"""What `orchestrator status --watch` shows: the status, a curve of the loss, the last events."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from orchestrator.cli.status_table import status_table
from orchestrator.rundir.journal_end import newest_events
from orchestrator.rundir.metric_samples import MetricSamples, sample_metrics
from orchestrator.rundir.paths import RunDir
from orchestrator.system.text import shown_line
from orchestrator.terminal.line_chart import line_chart

CHART_ROWS = 6
MOST_CHART_COLUMNS = 100
EVENTS = 6
# The facts of events that say most in few words.
_FACTS = ("step", "reason", "cause", "problem", "status")


def watched_status(run: RunDir, status: dict[str, Any]) -> RenderableType:
    """Return the status of a run, the loss over its steps, and its last events."""
    parts: list[RenderableType] = [status_table(status)]
    for samples in sample_metrics(run.metrics_file, MOST_CHART_COLUMNS)[:1]:
        parts += [Text(), _Curve(samples)]
    events = newest_events(run.journal_file, EVENTS)
    if events:
        parts += [Text(), *map(_event_line, events)]
    return Group(*parts)


@dataclass(frozen=True)
class _Curve:
    """A chart of a metric, as wide as the terminal allows."""

    samples: MetricSamples

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        steps, values = self.samples.steps, self.samples.values
        labels = [f"{max(values):.4g}", *[""] * (CHART_ROWS - 2), f"{min(values):.4g}"]
        margin = max(map(len, labels))
        columns = max(1, min(options.max_width - margin - 1, MOST_CHART_COLUMNS))
        chart = line_chart(steps, values, columns, CHART_ROWS, ascii_only=options.ascii_only)
        yield Text(shown_line(self.samples.name), style="bold", no_wrap=True, overflow="crop")
        for label, line in zip(labels, chart, strict=True):
            yield Text(f"{label:>{margin}} {line}", no_wrap=True)
        first, last = f"step {min(steps):.0f}", f"{max(steps):.0f}"
        yield Text(f"{'':{margin}} {first}{last:>{max(0, columns - len(first))}}", no_wrap=True)


def _event_line(event: dict[str, Any]) -> Text:
    facts = ", ".join(f"{name} {event[name]}" for name in _FACTS if event.get(name) is not None)
    text = f"{_local_time(event.get('time'))}  {event['event'].replace('_', ' ')}  {facts}"
    return Text(shown_line(text).rstrip(), no_wrap=True, overflow="crop")


def _local_time(time: str | None) -> str:
    try:
        return f"{datetime.fromisoformat(time or '').astimezone():%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError):
        return "at an unknown time"
