"""The newest events of a journal, read from its end."""

import contextlib
import os
from pathlib import Path
from typing import Any

from orchestrator.rundir.journal import parse_event
from orchestrator.system.lines_from_end import lines_from_end
from orchestrator.system.regular_files import open_regular


def newest_events(path: Path, count: int, most_bytes: int) -> list[dict[str, Any]]:
    """Return up to ``count`` events, oldest first, that are in the last ``most_bytes``.

    What cannot be read is left out.
    """
    events: list[dict[str, Any]] = []
    with contextlib.suppress(OSError), open(open_regular(path, os.O_RDONLY), "rb") as file:
        end = os.fstat(file.fileno()).st_size
        for begin, line in lines_from_end(file):
            if end - begin > most_bytes or len(events) == count:
                break
            if (event := parse_event(line)) is not None:
                events.append(event)
    return events[::-1]
