"""What the trainers of a run were seen writing and is no checkpoint yet."""

import contextlib
import json
from pathlib import Path
from typing import Any

from orchestrator.system.durable import write_json


class WriteLedger:
    """Kept in a file: a machine may go away in the middle of a save, and all that ran on it.

    Only what is known here may be taken out of the way.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._here: set[str] = set()
        self._previous: dict[str, dict[str, int]] = {}
        # A damaged one costs only that what a killed save has left stays where it is.
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            content: dict[str, Any] = json.loads(file.read_bytes())
            self._previous = {p: dict(times) for p, times in content["previous"].items()}
            self._here = set(map(str, content["here"]))

    def note(self, path: Path) -> None:
        """It has appeared or changed while a trainer was running."""
        if str(path) not in self._here:
            self._here.add(str(path))
            self._save()

    def is_ours(self, path: Path) -> bool:
        """Whether that was noted."""
        return str(path) in self._here

    def begun_anew(self, path: Path, previous: dict[str, int]) -> None:
        """What was a checkpoint, with files of these times, is being written over."""
        self._previous[str(path)] = previous
        self._save()

    def previous(self, path: Path) -> dict[str, int]:
        """The times of the files before that."""
        return self._previous.get(str(path), {})

    def settled(self, path: Path) -> None:
        """It is a checkpoint now, or out of the way."""
        if str(path) in self._here or str(path) in self._previous:
            self._here.discard(str(path))
            self._previous.pop(str(path), None)
            self._save()

    def _save(self) -> None:
        with contextlib.suppress(OSError):
            write_json(self._file, {"here": sorted(self._here), "previous": self._previous})
