"""Walks and makes directories by descriptors: a link that takes the place of one leads nowhere."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.system.regular_files import NEW_DIRECTORY_MODE, explained, open_directory

# Each level costs a descriptor.
MOST_LEVELS = 100


@dataclass(frozen=True)
class Entry:
    """Something below a directory: its name from there, and what it is itself, link or not."""

    name: str
    facts: os.stat_result
    folder: int
    """The opened directory that it is in, until the next entry is asked for."""

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory, whose content comes after it."""
        return stat.S_ISDIR(self.facts.st_mode)


def walk_tree(top: int) -> Iterator[Entry]:
    """Yield everything below an opened directory, in the order of the names. Raises OSError."""
    waiting = [(top, "", _names_in(top))]
    try:
        while waiting:
            folder, prefix, names = waiting[-1]
            name = next(names, None)
            if name is None:
                waiting.pop()
                if folder != top:
                    os.close(folder)
                continue
            try:
                facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                continue  # it was deleted meanwhile
            if stat.S_ISDIR(facts.st_mode):
                if len(waiting) == MOST_LEVELS:
                    problem = f"it has more than {MOST_LEVELS} levels of directories"
                    raise OSError(errno.ELOOP, problem, prefix + name)
                inner = open_directory(name, folder)
                waiting.append((inner, f"{prefix}{name}/", _names_in(inner)))
                facts = os.fstat(inner)
            yield Entry(prefix + name, facts, folder)
    finally:
        for folder, _, _ in waiting:
            if folder != top:
                os.close(folder)


def files_below(directory: Path) -> set[str]:
    """Return the relative names of everything below a directory that is not itself a directory.

    Raises OSError.
    """
    return {entry.name for entry in _entries_below(directory) if not entry.is_directory}


def directories_from(directory: Path) -> list[Path]:
    """Return a directory and all below it, each after those that are in it. Raises OSError."""
    names = [entry.name for entry in _entries_below(directory) if entry.is_directory]
    return [*(directory / name for name in reversed(names)), directory]


def _entries_below(directory: Path) -> Iterator[Entry]:
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield from walk_tree(top)
    finally:
        os.close(top)


def _names_in(folder: int) -> Iterator[str]:
    yield from sorted(os.listdir(folder))  # read when the first is asked for


@contextlib.contextmanager
def opened_directory(name: str, folder: int) -> Iterator[int]:
    """Open a directory that is no link, in an opened one, for the block. Raises OSError."""
    opened = open_directory(name, folder)
    try:
        yield opened
    finally:
        os.close(opened)


def make_directories(path: Path, below: Path | None) -> None:
    """Make a directory, and those above it, where they are missing. Raises OSError.

    Where it is below the directory ``below``, it and all between the two may be no links.
    """
    top = path if below is None or not path.is_relative_to(below) else below
    top.mkdir(NEW_DIRECTORY_MODE, parents=True, exist_ok=True)
    folder = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in path.relative_to(top).parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, NEW_DIRECTORY_MODE, dir_fd=folder)
            inner = open_directory(name, folder)
            os.close(folder)
            folder = inner
    except OSError as error:
        raise explained(error, path) from None
    finally:
        os.close(folder)
