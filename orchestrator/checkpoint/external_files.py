"""Links or copies files that another program has written, durably."""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from orchestrator.checkpoint.manifest import FileRecord
from orchestrator.checkpoint.verification import digest_of_opened
from orchestrator.rundir.ownership import is_written_by_one
from orchestrator.rundir.tree_owners import ForeignError, TreeOwners
from orchestrator.system.durable import Disk, folder_of
from orchestrator.system.real_trees import Entry, directories_from, make_directories
from orchestrator.system.regular_files import open_regular

COPY_BYTES = 16 << 20


def copy_tree_durably(
    source: Path, target: Path, disk: Disk, *, link: bool, below: Path | None = None
) -> dict[str, FileRecord]:
    """Copy the files at ``source``, a directory or one file, to the new directory ``target``.

    With ``link`` they are hard links where the filesystem has them. A symbolic link is copied as
    the file that it names, if nobody else may write to the directory that it is in. Nothing is
    taken that belongs to a stranger, and nothing is made behind a link between the target and the
    directory ``below``. Return the records of the files by their names below ``target``. Raises
    OSError.
    """
    disk.make_directory(target, below=below)
    origins = _origins(source)
    if not origins:
        raise FileNotFoundError(errno.ENOENT, "there are no files", str(source))
    records = {}
    for name, (origin, facts) in origins.items():
        file = target / name
        link_or_copy(origin, file, disk, link=link, expected=facts, target_below=below)
        records[name] = sync_and_digest(file, disk, below)
    for folder in directories_from(target):
        disk.sync_directory(folder)
    return records


def unlink_shared_files(directory: Path) -> None:
    """Remove the files with several links from the directory of a framework, if it is there.

    The store may link to them, and the framework is about to write into them again. Raises OSError
    where something of it is not this user's.
    """
    if not os.path.lexists(directory):
        return
    for entry in _entries(directory):
        if stat.S_ISREG(entry.facts.st_mode) and entry.facts.st_nlink > 1:
            os.unlink(os.path.basename(entry.name), dir_fd=entry.folder)


def _origins(source: Path) -> dict[str, tuple[Path, os.stat_result]]:
    """Return the path and the facts of each file at ``source``, by its name there."""
    folder = source if stat.S_ISDIR(os.lstat(source).st_mode) else source.parent
    origins = {}
    for entry in _entries(source):
        facts = entry.facts
        if stat.S_ISLNK(facts.st_mode):
            if not is_written_by_one(os.fstat(entry.folder)):
                problem = f"{folder / entry.name} is a link, and others may replace it"
                raise OSError(errno.EPERM, problem)
            facts = os.stat(os.path.basename(entry.name), dir_fd=entry.folder)
        if not entry.is_directory:
            origins[entry.name] = folder / entry.name, facts
    return origins


def _entries(path: Path) -> Iterator[Entry]:
    """Yield what a framework has written at ``path``. Raises OSError for what is a stranger's."""
    try:
        yield from TreeOwners().entries(path, path.parent)
    except ForeignError as error:
        raise PermissionError(errno.EPERM, str(error)) from None


def link_or_copy(
    origin: Path,
    file: Path,
    disk: Disk,
    *,
    link: bool,
    below: Path | None = None,
    target_below: Path | None = None,
    expected: os.stat_result | None = None,
    modified_ns: int | None = None,
) -> None:
    """Make ``file``, in a folder that may be new, a hard link to ``origin`` or a copy of it.

    Where ``below`` is given, ``origin`` may be no symbolic link, nor be behind one below that
    directory: it could lead to any file of this user. ``target_below`` says the same of the folder
    of ``file``. A copy gets the time ``modified_ns``. With ``expected`` the origin must still be
    the file that had these facts. Raises OSError.
    """
    make_directories(file.parent, target_below)
    if link and not os.path.islink(origin):
        # Another filesystem, or one without links; the copy below meets any real problem.
        with contextlib.suppress(OSError):
            disk.link(origin, file, below=below)
            with folder_of(file, target_below) as folder:
                facts = os.stat(file.name, dir_fd=folder, follow_symlinks=False)
                if expected is None or os.path.samestat(facts, expected):
                    return
                os.unlink(file.name, dir_fd=folder)
    with _opened(origin, below) as old, disk.create(file, below=target_below) as new:
        if expected is not None and not os.path.samestat(os.fstat(old.fileno()), expected):
            raise OSError(errno.ESTALE, f"{origin} was replaced meanwhile", str(origin))
        _copy_bytes(old, new)
        if modified_ns is not None:
            new.flush()
            os.utime(new.fileno(), ns=(modified_ns, modified_ns))


def sync_and_digest(file: Path, disk: Disk, below: Path | None = None) -> FileRecord:
    """Bring a file to the disk and return its size and digest; ``below`` as in ``link_or_copy``.

    Raises OSError.
    """
    with _opened(file, below) as opened:
        disk.sync(opened)
        return digest_of_opened(os.dup(opened.fileno()))


def _opened(path: Path, below: Path | None) -> BinaryIO:
    """Open a regular file for reading, whatever another user puts in its place meanwhile."""
    real_parents = 0 if below is None else len(path.relative_to(below).parts) - 1

    def opener(name: str, flags: int) -> int:
        return open_regular(path, flags, real_parents=real_parents, follow_link=below is None)

    return open(path, "rb", opener=opener)


def _copy_bytes(source: BinaryIO, target: BinaryIO) -> None:
    # By reference where the filesystem can do that, else inside the kernel.
    with contextlib.suppress(OSError, AttributeError):
        while os.copy_file_range(source.fileno(), target.fileno(), COPY_BYTES):
            pass
    # What the kernel could not copy: both files stand where it stopped, and errors of the disk
    # come up here.
    shutil.copyfileobj(source, target, COPY_BYTES)
