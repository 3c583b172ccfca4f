"""The end of metrics.jsonl, which tells how far a run has come that could record no more."""

import contextlib
import os
from pathlib import Path

from orchestrator.system.json_input import parse_object
from orchestrator.system.lines_from_end import lines_from_end
from orchestrator.system.regular_files import open_regular

# A line that was being written when the process died, and perhaps the rest of one before it.
MOST_LINES = 3


def last_recorded_step(path: Path) -> int | None:
    """Return the step of the last whole line; None where there is none."""
    with contextlib.suppress(OSError), open(open_regular(path, os.O_RDONLY), "rb") as file:
        for _, (_, line) in zip(range(MOST_LINES), lines_from_end(file), strict=False):
            with contextlib.suppress(ValueError):
                step = parse_object(line.decode()).get("step")
                return step if type(step) is int else None
    return None
