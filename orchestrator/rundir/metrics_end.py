"""The end of metrics.jsonl, which tells how far a run has come that could record no more."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from orchestrator.system.json_input import parse_object
from orchestrator.system.lines_from_end import lines_from_end
from orchestrator.system.regular_files import open_regular

# A line that was being written when the process died, and perhaps the rest of one before it.
MOST_LINES = 3


class RecordedStep(NamedTuple):
    """A step of which metrics were recorded, and when: in UTC, ISO 8601; None if unknown."""

    step: int
    time: str | None


def last_recorded_step(path: Path) -> RecordedStep | None:
    """Return the step of the last whole line; None where there is none."""
    with contextlib.suppress(OSError), open(open_regular(path, os.O_RDONLY), "rb") as file:
        for _, (_, line) in zip(range(MOST_LINES), lines_from_end(file), strict=False):
            with contextlib.suppress(ValueError):
                content = parse_object(line.decode())
                step, time = content.get("step"), content.get("time")
                is_text = isinstance(time, str)
                return RecordedStep(step, time if is_text else None) if type(step) is int else None
    return None
