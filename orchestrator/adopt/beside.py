"""Finds saves that are like those of a pattern and are where the pattern does not look."""

import glob
import os
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from orchestrator.adopt.files import SavedFiles
from orchestrator.adopt.pattern import Pattern
from orchestrator.adopt.unit_pattern import UnitPattern

# This many directories above a save may have names that change from one start to the next.
MOST_CHANGING_LEVELS = 3
# A pattern that is so wide that it matches more is no help.
MOST_FOUND = 200


@dataclass(frozen=True)
class SaveBeside:
    """A save that the pattern does not match, and the text of a pattern that would match both."""

    path: Path
    narrow_text: str
    pattern_text: str


def find_beside(
    pattern: UnitPattern, since_ns: int, *, in_directories: bool = False
) -> SaveBeside | None:
    """Return the newest save beside the patterns that was written after ``since_ns``, or None.

    One part of the path differs, such as the number of an experiment or a date, or two parts that
    follow each other. With ``in_directories`` the last part does not differ.
    """
    found = (_find_beside(one, pattern, since_ns, in_directories) for one in pattern.patterns)
    return next((beside for beside in found if beside is not None), None)


def _find_beside(
    pattern: Pattern, unit: UnitPattern, since_ns: int, in_directories: bool
) -> SaveBeside | None:
    parts = [*pattern.base.parts[1:], *(level.text for level in pattern.levels)]
    escaped = [*map(glob.escape, pattern.base.parts[1:]), *parts[len(pattern.base.parts) - 1 :]]
    # Other projects are beside the current directory.
    here = Path.cwd().parts
    project = len(here) - 1 if pattern.base.parts[: len(here)] == here else 0
    first = max(project, len(parts) - 1 - MOST_CHANGING_LEVELS)
    spans = [(i, i + 1) for i in reversed(range(first, len(parts) - in_directories))]
    spans += [(i, i + 2) for i in range(first, len(parts) - 2)]
    for start, end in spans:
        wide = _widened(escaped, parts, start, end, None)
        found = [p for p in _matches(wide) if not unit.covers(p) and _is_of_this_user(p)]
        newest = max(((_written_ns(path), path) for path in found[:MOST_FOUND]), default=None)
        if newest is not None and newest[0] >= since_ns:
            narrow = _widened(escaped, parts, start, end, newest[1])
            return SaveBeside(newest[1], pattern.text, os.path.relpath(narrow))
    return None


def _widened(escaped: list[str], parts: list[str], start: int, end: int, found: Path | None) -> str:
    """Return the pattern's path with wildcards in these parts, narrow enough for ``found``."""
    middle = []
    for index in range(start, end):
        suffix = os.path.splitext(parts[index])[1] if index == len(parts) - 1 else ""
        prefix = ""
        if found is not None:
            pairs = zip(parts[index], found.parts[index + 1], strict=False)
            same = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            prefix = same.removesuffix(suffix)
        middle.append(f"{glob.escape(prefix)}*{glob.escape(suffix)}")
    return os.path.join("/", *escaped[:start], *middle, *escaped[end:])


def _matches(text: str) -> list[Path]:
    try:
        return Pattern.parse(text).find()[1]
    except ValueError:
        return []


def _is_of_this_user(path: Path) -> bool:
    try:
        return path.lstat().st_uid in (os.geteuid(), 0)
    except OSError:
        return False


def _written_ns(path: Path) -> int:
    files = SavedFiles.at(path)
    return 0 if files is None else files.last_change_ns
