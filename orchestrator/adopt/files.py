"""The files that a script has saved under one name: a single file, or a directory of files."""

import contextlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class FileState:
    """The facts about a file that change when it is replaced or written to."""

    inode: int
    bytes: int
    modified_ns: int


@dataclass(frozen=True)
class SavedFiles:
    """The files at ``path``, by their names below ``root``; links do not count."""

    path: Path
    is_directory: bool
    states: dict[str, FileState]

    @classmethod
    def at(cls, path: Path) -> Self | None:
        """Look at what is there now; None where there is nothing, or it is being taken away."""
        try:
            found = path.lstat()
            if stat.S_ISREG(found.st_mode):
                return cls(path, False, {path.name: state_of(found)})
            if stat.S_ISDIR(found.st_mode):
                return cls(path, True, dict(_walk(path)))
        except OSError:
            pass
        return None

    @property
    def root(self) -> Path:
        """The directory that the names are relative to."""
        return self.path if self.is_directory else self.path.parent

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
