"""Derives the pattern of --adopt from the paths under which a script has saved."""

import glob
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from orchestrator.adopt.beside import find_beside
from orchestrator.adopt.pattern import DATE_AND_TIME
from orchestrator.adopt.unit_pattern import UnitPattern
from orchestrator.first_look.saves import STEP_NUMBER, SaveGroup

_NUMBER = re.compile(r"(\d+)")
# A time of day, and the seconds since 1970.
_TIME = re.compile(r"(?<!\d)[0-2]\d[-_:.][0-5]\d[-_:.][0-5]\d(?!\d)|(?<!\d)1\d{9,}(?!\d)")
# Directories whose number goes up with each start.
_COUNTED = re.compile(
    r"((?:^|[-_.])(?:exp|experiment|run|version|train|trial|job|v)[-_]?)\d+$", re.IGNORECASE
)


def pattern_text(group: SaveGroup, command: Sequence[str], before: Collection[Path]) -> str:
    """Return the text of a pattern for what was saved, and for what the next start will save.

    ``before`` are the files that were there before the look. Numbers of saves become ``*``, and so
    do dates and counts of starts in directories that the script has made and named.
    """
    folder = group.newest.parent
    named = {part for word in command for part in re.split(r"[/=]", word)}
    above = [directory for directory in (folder, *folder.parents) if directory.name]
    own = {d for d in above if d.name not in named and _is_new(d, before)}
    parts = [
        _changing_text(directory.name) if directory in own else glob.escape(directory.name)
        for directory in reversed(above)
    ]
    whole = os.path.join("/", *parts, _name_text(group))
    here = os.path.join("/", glob.escape(str(Path.cwd())), "")
    text = whole.removeprefix(here)
    return _with_earlier_starts(text, group.newest, own)


def _is_new(directory: Path, before: Collection[Path]) -> bool:
    is_above = Path.cwd().is_relative_to(directory)
    return not is_above and not any(path.is_relative_to(directory) for path in before)


def _changing_text(name: str) -> str:
    """Return a pattern for a name in which a date, a time or a count changes."""
    for changing in (DATE_AND_TIME, _TIME):
        if found := changing.search(name):
            return f"{glob.escape(name[: found.start()])}*{glob.escape(name[found.end() :])}"
    if found := _COUNTED.search(name):
        return f"{glob.escape(name[: found.end(1)])}*"
    return glob.escape(name)


def _name_text(group: SaveGroup) -> str:
    """Return a pattern for the last part of the path."""
    if len(group.members) > 1:
        names = [_NUMBER.split(path.name) for path in group.members]
        columns = [set(column) for column in zip(*names, strict=True)]
        return "".join("*" if len(texts) > 1 else glob.escape(texts.pop()) for texts in columns)
    name = group.newest.name
    if group.is_rewritten or not group.has_numbers:
        return _changing_text(name)
    spans = [found.span(1) for found in STEP_NUMBER.finditer(name)]
    spans = spans or [found.span() for found in _NUMBER.finditer(name)][-1:]
    text, end = "", 0
    for begin, following in spans:
        text += glob.escape(name[end:begin]) + "*"
        end = following
    return text + glob.escape(name[end:])


def _with_earlier_starts(text: str, path: Path, own: Collection[Path]) -> str:
    """Return a wider pattern if earlier starts have saved in directories counted like this one."""
    beside = find_beside(UnitPattern.parse(text), 0, in_directories=True)
    if beside is None:
        return text
    above = list(zip(path.parents, beside.path.parents, strict=False))
    other = [(mine, earlier) for mine, earlier in above if mine.name != earlier.name]
    is_count = all(
        mine in own and _without_count(mine.name) == _without_count(earlier.name)
        for mine, earlier in other
    )
    return beside.pattern_text if is_count else text


def _without_count(name: str) -> str:
    return re.sub(r"[-_]?\d+$", "", name)
