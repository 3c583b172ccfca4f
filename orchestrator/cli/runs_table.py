"""The table that `orchestrator runs` prints for people."""

from pathlib import Path
from typing import Any

from rich.text import Text

from orchestrator.cli.table_cells import cell_text, metrics_text, state_style
from orchestrator.system.text import shown_line, shown_parts
from orchestrator.system.units import duration_text
from orchestrator.telemetry.progress import percent_text


def runs_table(statuses: list[dict[str, Any]], parent: Path) -> Text:
    """Return a line for each run, with its directory as it is below ``parent``.

    Nothing is cut off. The last column is the problem, or the metrics.
    """
    if not statuses:
        return Text(f"no runs below {shown_line(parent)}")
    statuses = shown_parts(statuses)
    titles = ("run", "state", "step", "epoch", "done", "left", "restarts", "at risk", "checkpoint")
    cells = [titles, *(_run_cells(status, parent) for status in statuses)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)) for line in cells]
    # The terminal wraps a long line, so that no name is cut off.
    text = Text(lines[0].rstrip(), style="bold", no_wrap=True, overflow="ignore")
    for status, line in zip(statuses, lines[1:], strict=True):
        first, rest = line[: widths[0] + 2], line[widths[0] + 2 :]
        text.append(f"\n{first}", "not bold")
        text.append(rest[: widths[1]], f"not bold {state_style(status['state'])}")
        last = status["problem"] or metrics_text(status["metrics"])
        text.append(f"{rest[widths[1] :]}  {last}".rstrip(), "not bold")
    return text


def _run_cells(status: dict[str, Any], parent: Path) -> tuple[str, ...]:
    path, newest = Path(status["run_dir"]), status["newest_checkpoint"]
    risk = status["lose_at_most_seconds"]
    percent, seconds_left = (status["progress"][key] for key in ("percent", "seconds_left"))
    is_below = path != parent and path.is_relative_to(parent)
    return (
        str(path.relative_to(parent) if is_below else path),
        str(status["state"]),
        cell_text(status["step"]),
        cell_text(status["epoch"]),
        "" if percent is None else percent_text(percent),
        "" if seconds_left is None else duration_text(seconds_left),
        cell_text(status["restarts"] or None),
        "" if risk is None else duration_text(risk),
        "none" if newest is None else f"{duration_text(newest['age_seconds'])} old",
    )
