"""Groups written files into saves: files or directories whose names differ only in numbers."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from orchestrator.adopt.file_check import DCP_METADATA
from orchestrator.adopt.files import FileState, kind_of
from orchestrator.adopt.save_check import ACCELERATE_RANDOM_STATES, TRAINER_STATE
from orchestrator.first_look.weights import Likeness
from orchestrator.first_look.written_files import WrittenFile

# A directory that is a save lies at most this far above its files.
MOST_LEVELS = 3
_TEMPORARY = re.compile(r"(^|[-_./])(tmp|temp|incomplete)([-_./]|\d|$)", re.IGNORECASE)
# What is no save to go on from: the best one, the model of a finished training.
_SPECIAL = re.compile(r"(^|[-_.])(best|final|ema|export)([-_.=]|\d|$)", re.IGNORECASE)
# The file of a rank, or a part of a file that is too large.
_SHARD = re.compile(r"(rank|shard|part|of)[-_]?\d+|\d+[-_]of", re.IGNORECASE)
# Frameworks write these last.
_LAST_FILES = {TRAINER_STATE, DCP_METADATA}
STEP_NUMBER = re.compile(
    r"(?:step|epoch|iter[a-z]*|ckpt|checkpoint|update|round)[-_=]?(\d+)", re.IGNORECASE
)


@dataclass(frozen=True)
class SaveGroup:
    """The saves of one kind, with the versions of each path that were seen."""

    members: Mapping[Path, Sequence[FileState]]
    is_directory: bool
    likeness: Likeness

    @cached_property
    def paths(self) -> list[Path]:
        """The paths in the order of their last versions."""
        return sorted(self.members, key=lambda path: self.members[path][-1].modified_ns)

    @property
    def newest(self) -> Path:
        """The path that was saved last."""
        return self.paths[-1]

    @property
    def saves(self) -> int:
        """How many saves were seen."""
        return sum(map(len, self.members.values()))

    @property
    def is_rewritten(self) -> bool:
        """Whether each path was saved under more than once, as far as it was seen."""
        return self.saves >= 2 * len(self.members)

    @property
    def has_numbers(self) -> bool:
        """Whether the names have numbers that change, or may change."""
        return len(self.members) > 1 or (
            not self.is_rewritten and kind_of(self.newest.name) != self.newest.name
        )

    @property
    def bytes(self) -> int:
        """The size of the newest save, as far as it was seen."""
        return self.members[self.newest][-1].bytes

    @property
    def seconds_between(self) -> float | None:
        """The longest time between two saves; None where fewer than two were seen."""
        times = sorted(state.modified_ns for states in self.members.values() for state in states)
        pauses = [(after - before) / 1e9 for before, after in pairwise(times)]
        return max(pauses, default=None)

    @property
    def is_special(self) -> bool:
        """Whether its name says that it is the best or the final one, not one to go on from."""
        return _SPECIAL.search(self.newest.stem) is not None

    @property
    def _rank(self) -> tuple[bool, Likeness, int, bool, int]:
        few = min(self.saves, 2)
        return not self.is_special, self.likeness, few, self.has_numbers, self.bytes


@dataclass(frozen=True)
class Saves:
    """The saves to adopt, and the files that the script writes together with each of them."""

    group: SaveGroup
    parts: Sequence[SaveGroup]


def find_saves(written: Iterable[WrittenFile]) -> Saves | None:
    """Return the saves among the files that were written; None if there are none."""
    here = Path.cwd()
    files = [file for file in written if not _TEMPORARY.search(os.path.relpath(file.path, here))]
    groups = _groups(files)
    likely = [group for group in groups if group.likeness is Likeness.STRONG or group.saves > 1]
    if not likely:
        return None
    chosen = max(likely, key=lambda group: group._rank)
    return Saves(chosen, [group for group in likely if _belongs_to(group, chosen)])


def _belongs_to(group: SaveGroup, chosen: SaveGroup) -> bool:
    """Return whether one save consists of one file of each group."""
    if group is chosen or group.is_special or group.likeness is not chosen.likeness:
        return False
    inodes = {state.inode for states in chosen.members.values() for state in states}
    is_link = any(state.inode in inodes for states in group.members.values() for state in states)
    return (
        not (is_link or group.is_directory or chosen.is_directory)
        and group.newest.parent == chosen.newest.parent
        and group.has_numbers == chosen.has_numbers
        and abs(group.saves - chosen.saves) <= 1
    )


def _groups(files: Sequence[WrittenFile]) -> list[SaveGroup]:
    kinds = _directory_kinds(files)
    found: dict[tuple[str, str], dict[Path, list[WrittenFile]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for file in files:
        unit = _unit(file.path, kinds)
        found[str(unit.parent), kind_of(unit.name)][unit].append(file)
    return [_group(members, kinds) for members in found.values()]


def _group(members: Mapping[Path, list[WrittenFile]], kinds: set[tuple[str, str]]) -> SaveGroup:
    versions: dict[Path, Sequence[FileState]] = {}
    for path, files in members.items():
        largest = max(files, key=lambda file: (len(file.versions), file.versions[-1].bytes))
        whole = sum(file.versions[-1].bytes for file in files)
        last = largest.versions[-1]
        versions[path] = [
            *largest.versions[:-1],
            FileState(last.inode, whole, last.modified_ns),
        ]
    likely = max(file.likeness for files in members.values() for file in files)
    path = next(iter(members))
    return SaveGroup(versions, _kind(path) in kinds, likely)


def _kind(path: Path) -> tuple[str, str]:
    return str(path.parent), kind_of(path.name)


def _unit(path: Path, kinds: set[tuple[str, str]]) -> Path:
    """Return the outermost directory that is a save and has this file in it, else the file."""
    above = [directory for directory in path.parents if _kind(directory) in kinds]
    return above[-1] if above else path


def _directory_kinds(files: Sequence[WrittenFile]) -> set[tuple[str, str]]:
    """Return the kinds of directories of which each is one save."""
    inside: dict[Path, list[WrittenFile]] = defaultdict(list)
    here = Path.cwd()
    for file in files:
        for directory in list(file.path.parents)[:MOST_LEVELS]:
            if not here.is_relative_to(directory):
                inside[directory].append(file)
    brothers: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for directory, below in inside.items():
        if any(file.likeness is Likeness.STRONG for file in below):
            brothers[_kind(directory)].append(directory)
    return {
        kind
        for kind, directories in brothers.items()
        if any(_is_save(directory, inside[directory]) for directory in directories)
        or (len(directories) > 1 and all(_is_written_once(inside[d]) for d in directories))
    }


def _is_save(directory: Path, files: Sequence[WrittenFile]) -> bool:
    """Return whether a framework's own files prove it, or the name, if all was written once."""
    if STEP_NUMBER.search(directory.name) and any(file.path.parent == directory for file in files):
        return _is_written_once(files)
    try:
        names = os.listdir(directory)
    except OSError:
        return False
    return not _LAST_FILES.isdisjoint(names) or any(
        name.startswith(ACCELERATE_RANDOM_STATES) for name in names
    )


def _is_written_once(files: Sequence[WrittenFile]) -> bool:
    """Return whether no file was written over, and no names differ only in numbers of steps."""
    plain = [file.path for file in files if not _SHARD.search(file.path.name)]
    kinds = {_kind(path) for path in plain}
    return all(len(file.versions) == 1 for file in files) and len(kinds) == len(plain)
