"""What lies on the disk under the name of a checkpoint: a file, or a directory with everything."""

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
    """What changes when a file is replaced or written to."""

    inode: int
    bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Contents:
    """The files of one checkpoint, by their names below ``root``; links do not belong to it."""

    path: Path
    is_directory: bool
    files: dict[str, FileState]

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """As it is now; None where there is none, or it is being taken away."""
        try:
            found = path.lstat()
            if stat.S_ISREG(found.st_mode):
                return cls(path, False, {path.name: _state(found)})
            if stat.S_ISDIR(found.st_mode):
                return cls(path, True, dict(_walk(path, "")))
        except OSError:
            pass
        return None

    @property
    def root(self) -> Path:
        """The directory that the names are relative to."""
        return self.path if self.is_directory else self.path.parent

    @property
    def modified_ns(self) -> dict[str, int]:
        """When each file was written last."""
        return {name: file.modified_ns for name, file in self.files.items()}


def _walk(directory: Path, prefix: str) -> Iterator[tuple[str, FileState]]:
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(directory / entry.name, f"{prefix}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    yield prefix + entry.name, _state(entry.stat(follow_symlinks=False))


def _state(found: os.stat_result) -> FileState:
    return FileState(found.st_ino, found.st_size, found.st_mtime_ns)


def kind_of(name: str) -> str:
    """The name without its numbers, which are of the step or the rank."""
    return _NUMBER.sub("#", name)


def kinds_of(names: Iterable[str]) -> Counter[str]:
    """How many there are of each kind."""
    return Counter(map(kind_of, names))
