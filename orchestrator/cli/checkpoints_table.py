"""The tables that `orchestrator checkpoints` prints for people."""

from typing import Any

from rich.text import Text

from orchestrator.cli.table_cells import cell_text, metrics_text
from orchestrator.system.text import shown_parts
from orchestrator.system.units import size_text

# Stands before metrics and notes that have a line of their own.
DETAILS_INDENT = "\n    "


def checkpoints_table(rows: list[dict[str, Any]], columns: int) -> Text:
    """Return a line for each checkpoint, newest last, that fits into this many columns.

    Metrics and notes that do not fit go on an indented line of their own. Nothing is cut off.
    """
    if not rows:
        return Text("no checkpoints yet")
    rows = shown_parts(rows)
    titles = ("name", "step", "epoch", "reason", "size", "made", "exact")
    cells = [titles, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if title in ("step", "epoch", "size") else cell.ljust(width)
            for title, cell, width in zip(titles, line, widths, strict=True)
        )
        for line in cells
    ]
    text = Text(lines[0], style="bold")
    for row, line in zip(rows, lines[1:], strict=True):
        details = "  ".join(filter(None, (metrics_text(row["metrics"]), _notes(row))))
        fits = len(line) + 2 + len(details) <= columns
        text.append(f"\n{line}{'  ' if fits else DETAILS_INDENT}{details}".rstrip(), "not bold")
        for difference in row.get("differences", ()):
            text.append(f"{DETAILS_INDENT}{difference}", "not bold")
    return text


def quarantine_table(rows: list[dict[str, str]]) -> Text:
    """Return a line for each checkpoint in quarantine, with the reason."""
    lines = [f"  {row['path'].rsplit('/', 1)[-1]}  {row['reason']}" for row in shown_parts(rows)]
    return Text("\n".join(("in quarantine:", *lines)))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(row["path"]).rsplit("/", 1)[-1],
        cell_text(row["step"]),
        cell_text(row["epoch"]),
        cell_text(row["reason"]),
        "" if row["bytes"] is None else size_text(row["bytes"]),
        cell_text(row["time"]).partition(".")[0].replace("T", " "),
        cell_text(row["exactness"]).partition(": ")[0],
    )


def _notes(row: dict[str, Any]) -> str:
    # The column says whether the checkpoint is exact, and the note says why it is not.
    notes = list(filter(None, [cell_text(row["exactness"]).partition(": ")[2]]))
    if not row["valid"]:
        notes.append(f"INVALID: {row['problem']}" if row.get("problem") else "INVALID")
    if row["healthy"] is False:
        notes.append("non-finite")
    if row["pinned"]:
        notes.append("pinned")
    return ", ".join(notes)
