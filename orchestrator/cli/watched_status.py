"""What `orchestrator status --watch` shows: the status, a curve of the loss, the last events."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from orchestrator.cli.status_table import status_table
from orchestrator.rundir.journal_end import newest_events
from orchestrator.rundir.metric_samples import MetricSamples, sample_metrics
from orchestrator.rundir.paths import RunDir
from orchestrator.system.local_time import local_time_text
from orchestrator.system.text import shown_line
from orchestrator.terminal.line_chart import line_chart

CHART_ROWS = 6
MOST_CHART_COLUMNS = 100
LEAST_CHART_ROWS = 2
EVENTS = 6
MOST_EVENT_BYTES = 1 << 20
LINES_OF_A_PIPE = 1000
# The facts of events that say most in few words.
_FACTS = ("step", "reason", "cause", "problem", "status")


def watched_status(run: RunDir, status: dict[str, Any]) -> RenderableType:
    """Return the status of a run, the loss over its steps, and its last events.

    On a terminal the curve has the lines that the others leave, or is left out.
    """
    samples = sample_metrics(run.metrics_file, MOST_CHART_COLUMNS)[:1]
    events = newest_events(run.journal_file, EVENTS, MOST_EVENT_BYTES)
    return _View(status_table(status), samples, [*map(_event_line, events)])


@dataclass(frozen=True)
class _View:
    """Shows as much as there are lines on the terminal."""

    table: RenderableType
    samples: list[MetricSamples]
    events: list[Text]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table
        room = LINES_OF_A_PIPE
        if console.is_terminal:
            room = console.height - len(console.render_lines(self.table, options))
        # A blank line is above each part; a curve has its name and its axis too.
        shown = min(len(self.events), max(0, room - 1))
        rows = min(CHART_ROWS, room - (1 + shown if shown else 0) - 3)
        if rows >= LEAST_CHART_ROWS:
            for samples in self.samples:
                yield from (Text(), _Curve(samples, rows))
        if shown:
            yield from (Text(), *self.events[-shown:])


@dataclass(frozen=True)
class _Curve:
    """A chart of a metric, as wide as the terminal allows."""

    samples: MetricSamples
    rows: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        steps, values = self.samples.steps, self.samples.values
        labels = [f"{max(values):.4g}", *[""] * (self.rows - 2), f"{min(values):.4g}"]
        margin = max(map(len, labels))
        columns = max(1, min(options.max_width - margin - 1, MOST_CHART_COLUMNS))
        chart = line_chart(steps, values, columns, self.rows, ascii_only=options.ascii_only)
        yield Text(shown_line(self.samples.name), style="bold", no_wrap=True, overflow="crop")
        for label, line in zip(labels, chart, strict=True):
            yield Text(f"{label:>{margin}} {line}", no_wrap=True)
        first, last = f"step {min(steps):.0f}", f"{max(steps):.0f}"
        yield Text(f"{'':{margin}} {first}{last:>{max(0, columns - len(first))}}", no_wrap=True)


def _event_line(event: dict[str, Any]) -> Text:
    facts = ", ".join(f"{name} {event[name]}" for name in _FACTS if event.get(name) is not None)
    time = local_time_text(event.get("time")) or "at an unknown time"
    text = f"{time}  {event['event'].replace('_', ' ')}  {facts}"
    return Text(shown_line(text).rstrip(), no_wrap=True, overflow="crop")
