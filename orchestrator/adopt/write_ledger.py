"""A persistent record of the paths that trainers of the run have begun to write."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.adopt.descent import Descent
from orchestrator.rundir.records import MAXIMUM_JSON_BYTES
from orchestrator.system.durable import write_json
from orchestrator.system.json_input import parse_object
from orchestrator.system.regular_files import read_regular


class WriteLedger:
    """The paths that trainers of the run were seen writing, kept in a file.

    The file outlives a machine that fails in the middle of a save. Only a path in the
    ledger may be moved out of the way.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._here: set[str] = set()
        self._previous: dict[str, dict[str, int]] = {}
        self._has_rewrites = False
        self._descent = Descent(0)
        # A damaged file costs little: what a killed save has left then stays where it is.
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            content = parse_object(read_regular(file, MAXIMUM_JSON_BYTES), has_paths=True)
            self._previous = {p: _times(times) for p, times in content["previous"].items()}
            self._here = set(map(str, content["here"]))
            self._has_rewrites = bool(content["has_rewrites"])
            self._descent = Descent.from_json(content["descent"])

    def record_writes(self, paths: Iterable[Path]) -> None:
        """Record that these paths have appeared or changed while a trainer was running."""
        if new := set(map(str, paths)) - self._here:
            self._here |= new
            self._save()

    def was_written_here(self, path: Path) -> bool:
        """Return whether a trainer of the run was seen writing ``path``."""
        return str(path) in self._here

    def record_rewrite(self, path: Path, previous: dict[str, int]) -> None:
        """Record that a checkpoint, whose files had these times, is being written over."""
        self._previous[str(path)] = previous
        self._save()

    @property
    def has_rewrites(self) -> bool:
        """Whether the script has written over a name that it had saved under before."""
        return self._has_rewrites

    def record_rewriting(self) -> None:
        """Record that the script writes over a name that it had saved under before."""
        if not self._has_rewrites:
            self._has_rewrites = True
            self._save()

    @property
    def descent(self) -> Descent:
        """What the newest attempt has resumed from."""
        return self._descent

    def record_descent(self, descent: Descent) -> None:
        """Record what the attempt that begins, or goes on, has resumed from."""
        self._descent = descent
        self._save()

    def times_before_rewrite(self, path: Path) -> dict[str, int]:
        """Return the modification times of the files before a rewrite; empty if there was none."""
        return self._previous.get(str(path), {})

    def forget(self, *paths: Path) -> None:
        """Forget paths that are sealed now or out of the way."""
        if gone := set(map(str, paths)) & (self._here | self._previous.keys()):
            self._here -= gone
            self._previous = {p: times for p, times in self._previous.items() if p not in gone}
            self._save()

    def _save(self) -> None:
        with contextlib.suppress(OSError):
            content = {
                "here": sorted(self._here),
                "previous": self._previous,
                "has_rewrites": self._has_rewrites,
                "descent": self._descent.to_json(),
            }
            write_json(self._file, content)


def _times(content: dict[str, Any]) -> dict[str, int]:
    if not all(type(time) is int for time in content.values()):
        raise ValueError("not times")
    return content
