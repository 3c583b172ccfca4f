"""The newest events of a journal, read from its end."""

import contextlib
import os
from itertools import islice
from pathlib import Path
from typing import Any

from orchestrator.rundir.journal import parse_event
from orchestrator.system.lines_from_end import lines_from_end
from orchestrator.system.regular_files import open_regular

# Damaged lines are passed over, up to this many for each event that is wanted.
LINES_PER_EVENT = 100


def newest_events(path: Path, count: int) -> list[dict[str, Any]]:
    """Return up to ``count`` events, oldest first; what cannot be read is left out."""
    events: list[dict[str, Any]] = []
    with contextlib.suppress(OSError), open(open_regular(path, os.O_RDONLY), "rb") as file:
        for _, line in islice(lines_from_end(file), LINES_PER_EVENT * count):
            if (event := parse_event(line)) is not None:
                events.append(event)
            if len(events) == count:
                break
    return events[::-1]
