"""The files of one save: a single file, a directory of files, or several of both, a unit."""

import contextlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

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

    @classmethod
    def at(cls, *paths: Path) -> "SavedFiles | None":
        """Look at what is there now; None where there is nothing, or it is being taken away."""
        if len(paths) == 1:
            return _look_at(paths[0])
        members = tuple(filter(None, map(_look_at, paths)))
        if not members:
            return None
        root = common_folder(paths)
        states = {
            str((member.root / name).relative_to(root)): state
            for member in members
            for name, state in member.states.items()
        }
        is_directory = any(member.is_directory for member in members)
        return cls(paths, is_directory, states, members)

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


def _look_at(path: Path) -> SavedFiles | None:
    try:
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            return SavedFiles((path,), False, {path.name: state_of(found)})
        if stat.S_ISDIR(found.st_mode):
            return SavedFiles((path,), True, dict(_walk(path)))
    except OSError:
        pass
    return None


def common_folder(paths: Iterable[Path]) -> Path:
    """Return the directory to which the names of a unit's files are relative."""
    return Path(os.path.commonpath([path.parent for path in paths]))


def _walk(directory: Path) -> Iterator[tuple[str, FileState]]:
    waiting = [""]  # not by recursion: a hostile tree is deeper than the stack
    while waiting:
        prefix = waiting.pop()
        with os.scandir(directory / prefix) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{prefix}{entry.name}/")
                elif entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        yield prefix + entry.name, state_of(entry.stat(follow_symlinks=False))


def state_of(found: os.stat_result) -> FileState:
    """Return the facts of a file that change when it changes."""
    return FileState(found.st_ino, found.st_size, found.st_mtime_ns)


def kind_of(name: str) -> str:
    """Return the name without its numbers, which tell the step or the rank."""
    return _NUMBER.sub("#", name)


def kinds_of(names: Iterable[str]) -> Counter[str]:
    """Count the names of each kind."""
    return Counter(map(kind_of, names))
