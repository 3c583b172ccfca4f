"""The files of one save: a single file, a directory of files, or several of both, a unit."""

import contextlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.system.durable import folder_of
from orchestrator.system.real_trees import opened_directory, walk_tree

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class FileState:
    """The facts about a file that change when it is replaced or written to."""

    inode: int
    bytes: int
    modified_ns: int


@dataclass(frozen=True)
class SavedFiles:
    """The files at ``paths``, by their names below ``root``; links do not count.

    ``is_directory`` says that one of the paths is a directory.
    """

    paths: tuple[Path, ...]
    is_directory: bool
    states: dict[str, FileState]
    members: tuple["SavedFiles", ...] = ()
    """What is there of a unit, path by path; empty where there is only one path."""
    bases: tuple[Path, ...] = ()
    """The directory above each path below which no directory may be a link."""

    @classmethod
    def at(cls, *paths: Path, bases: Sequence[Path] = ()) -> "SavedFiles | None":
        """Look at what is there now; None where there is nothing, or it is being taken away.

        Without ``bases`` they are the directories in which the paths are.
        """
        bases = tuple(bases) or tuple(path.parent for path in paths)
        if len(paths) == 1:
            return _look_at(paths[0], bases[0])
        members = tuple(filter(None, map(_look_at, paths, bases)))
        if not members:
            return None
        root = common_folder(paths)
        states = {
            str((member.root / name).relative_to(root)): state
            for member in members
            for name, state in member.states.items()
        }
        is_directory = any(member.is_directory for member in members)
        return cls(paths, is_directory, states, members, bases)

    def now(self) -> "SavedFiles | None":
        """Look again at what is at the same paths."""
        return SavedFiles.at(*self.paths, bases=self.bases)

    def base_of(self, name: str) -> Path:
        """Return the base of the path to which the file of this name below ``root`` belongs."""
        file, bases = self.root / name, zip(self.paths, self.bases, strict=True)
        return next(base for path, base in bases if file.is_relative_to(path))

    @property
    def path(self) -> Path:
        """The path that stands for all of them."""
        return self.paths[0]

    @property
    def root(self) -> Path:
        """The directory that the names are relative to."""
        if len(self.paths) > 1:
            return common_folder(self.paths)
        return self.path if self.is_directory else self.path.parent

    @property
    def missing(self) -> list[Path]:
        """The paths of the unit at which nothing is."""
        there = {member.path for member in self.members}
        return [path for path in self.paths if path not in there] if self.members else []

    @property
    def times_of_members(self) -> dict[str, int]:
        """When each member of the unit was written last, by its name below ``root``."""
        root = self.root
        return {str(part.path.relative_to(root)): part.last_change_ns for part in self.members}

    @property
    def modified_ns(self) -> dict[str, int]:
        """The modification time of each file."""
        return {name: state.modified_ns for name, state in self.states.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each file in bytes."""
        return {name: state.bytes for name, state in self.states.items()}

    @property
    def first_change_ns(self) -> int:
        """When the oldest of the files was written; 0 where there are none."""
        return min(self.modified_ns.values(), default=0)

    @property
    def last_change_ns(self) -> int:
        """When the newest of the files was written; 0 where there are none."""
        return max(self.modified_ns.values(), default=0)


def _look_at(path: Path, base: Path) -> SavedFiles | None:
    with contextlib.suppress(OSError), folder_of(path, base) as folder:
        found = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISREG(found.st_mode):
            states = {path.name: state_of(found)}
            return SavedFiles((path,), False, states, bases=(base,))
        if stat.S_ISDIR(found.st_mode):
            with opened_directory(path.name, folder) as top:
                files = (entry for entry in walk_tree(top) if stat.S_ISREG(entry.facts.st_mode))
                states = {entry.name: state_of(entry.facts) for entry in files}
            return SavedFiles((path,), True, states, bases=(base,))
    return None


def common_folder(paths: Iterable[Path]) -> Path:
    """Return the directory to which the names of a unit's files are relative."""
    return Path(os.path.commonpath([path.parent for path in paths]))


def state_of(found: os.stat_result) -> FileState:
    """Return the facts of a file that change when it changes."""
    return FileState(found.st_ino, found.st_size, found.st_mtime_ns)


def kind_of(name: str) -> str:
    """Return the name without its numbers, which tell the step or the rank."""
    return _NUMBER.sub("#", name)


def kinds_of(names: Iterable[str]) -> Counter[str]:
    """Count the names of each kind."""
    return Counter(map(kind_of, names))
