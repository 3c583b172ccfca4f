"""Finds the files of a program's saves, as its --adopt names them."""

import contextlib
import glob
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from orchestrator.adopt.recipes import preset
from orchestrator.adopt.unit_pattern import UnitPattern

TEMPORARY_NAMES = ("*tmp*", "*temp*")


def has_begun(before: dict[str, tuple[int, int]], now: dict[str, tuple[int, int]]) -> bool:
    """Return whether a save has begun between two looks: a file is new, or has become shorter."""
    return any(path not in before or size < before[path][0] for path, (size, _) in now.items())


class SavesOnDisk:
    """What the patterns or recipes of a command match below a working directory."""

    def __init__(self, directory: Path, adopt: Sequence[str], command: Sequence[str]) -> None:
        texts = []
        for text in adopt:
            known = preset(text, command)
            parsed = UnitPattern.parse(known.pattern if known else text)
            texts += [pattern.text for pattern in parsed.patterns]
        self._patterns = [directory / text for text in texts]

    def look(self) -> dict[str, tuple[int, int]]:
        """Return the size and the time of each file, and of temporary ones beside them."""
        found = {}
        for pattern in self._patterns:
            names = [str(pattern), *(f"{pattern.parent}/{name}" for name in TEMPORARY_NAMES)]
            for match in chain.from_iterable(map(glob.glob, names)):
                for path in [match, *map(str, Path(match).rglob("*"))]:
                    with contextlib.suppress(OSError):
                        status = os.stat(path)
                        found[path] = (status.st_size, status.st_mtime_ns)
        return found
