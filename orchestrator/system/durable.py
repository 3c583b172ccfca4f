"""Durable file operations; the only module that calls fsync and rename.

A file or directory is durable once its own bytes *and* the directory entry that names it have been
synced. A rename is durable once the parent directory has been synced.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from orchestrator.system.direct_file import DirectFile
from orchestrator.system.regular_files import (
    NEW_DIRECTORY_MODE,
    NEW_FILE_MODE,
    explained,
    open_directory,
    open_folder,
    open_regular,
)

WRITE_BUFFER_BYTES = 1 << 20
_TEMPORARY_NAME = re.compile(r"\.(.+)\.[0-9a-f]{8}")


class Disk:
    """The disk operations of publishing and deleting; tests replace it to make each one fail.

    ``below`` is a directory to which others may write: no directory between it and a path below it
    may be a link, at the moment of the operation. Every method raises the system's OSError
    unchanged.
    """

    def make_directory(self, path: Path, *, below: Path | None = None) -> None:
        """Create a directory. Raises FileExistsError when it exists."""
        with folder_of(path, below) as folder:
            os.mkdir(path.name, NEW_DIRECTORY_MODE, dir_fd=folder)

    def create(self, path: Path, *, below: Path | None = None) -> BinaryIO:
        """Create a file and open it for writing. Raises FileExistsError when it exists."""
        with folder_of(path, below) as folder:
            return open(path, "xb", WRITE_BUFFER_BYTES, opener=_opener_in(folder))

    def create_direct(self, path: Path, *, below: Path | None = None) -> BinaryIO:
        """Create a file for large, page-aligned writes that bypass the page cache."""
        with folder_of(path, below) as folder:
            return cast(BinaryIO, DirectFile(path, _opener_in(folder)))

    def sync(self, file: BinaryIO) -> None:
        """Flush a file's bytes to the disk."""
        file.flush()
        os.fsync(file.fileno())
        if isinstance(file, DirectFile):
            file.drop_cache()

    def sync_directory(self, path: Path) -> None:
        """Flush a directory's entries to the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(
        self,
        source: Path,
        target: Path,
        *,
        below: Path | None = None,
        source_below: Path | None = None,
    ) -> None:
        """Rename a file or directory atomically; ``source_below`` stands in for its ``below``."""
        with folder_of(source, source_below or below) as old, folder_of(target, below) as new:
            os.rename(source.name, target.name, src_dir_fd=old, dst_dir_fd=new)

    def link(self, source: Path, target: Path, *, below: Path | None = None) -> None:
        """Create a hard link ``target`` to the file ``source``."""
        with folder_of(source, below) as folder:
            os.link(source.name, target, src_dir_fd=folder, follow_symlinks=False)

    def remove(self, path: Path, *, below: Path | None = None) -> None:
        """Remove one file or one empty directory."""
        with folder_of(path, below) as folder:
            kind = os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode
            remove = os.rmdir if stat.S_ISDIR(kind) else os.unlink
            remove(path.name, dir_fd=folder)


@contextlib.contextmanager
def folder_of(path: Path, below: Path | None) -> Iterator[int]:
    """Open the directory of ``path`` for the block, which gets its descriptor.

    Where it is below the directory ``below``, none between the two may be a link. Raises OSError.
    """
    real_parents = 0
    if below is not None and path.is_relative_to(below):
        real_parents = len(path.relative_to(below).parts) - 1
    try:
        folder = open_folder(path, real_parents)
    except OSError as error:
        raise explained(error, path) from None
    try:
        yield folder
    finally:
        os.close(folder)


def _open_new(path: str, flags: int) -> int:
    return os.open(path, flags, NEW_FILE_MODE)


def _opener_in(folder: int) -> Callable[[str, int], int]:
    def opener(path: str, flags: int) -> int:
        return os.open(os.path.basename(path), flags, NEW_FILE_MODE, dir_fd=folder)

    return opener


def remove_tree(path: Path, *, below: Path) -> None:
    """Remove a file, or a directory with all that is in it, as far as that is possible.

    It is not looked for behind a link between it and the directory ``below``.
    """
    with contextlib.suppress(OSError), folder_of(path, below) as folder:
        _remove_in(folder, path.name)


def _remove_in(folder: int, name: str) -> None:
    """Remove what has this name in a directory. Raises OSError."""
    # Not with shutil.rmtree(), which waits for the writer of a FIFO in the place of a directory.
    if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=folder)
        return
    inner = open_directory(name, folder)
    try:
        for entry in os.listdir(inner):
            with contextlib.suppress(OSError, RecursionError):
                _remove_in(inner, entry)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=folder)


@contextlib.contextmanager
def atomic_replacement(
    target: Path, disk: Disk, *, replace: bool, below: Path | None = None
) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``target``, and rename it to ``target`` after the block.

    The block writes the file, which is synced then. Readers see the old file or the complete new
    one. If the block raises, the temporary file is removed. Raises FileExistsError when ``target``
    exists and ``replace`` is false, or when it is not a regular file; otherwise OSError, also when
    another file has taken the place of the temporary one.
    """
    _refuse_existing(target, replace)
    temporary = _temporary_path(target)
    try:
        with disk.create(temporary, below=below) as file:
            yield file
            disk.sync(file)
            # Another process may have created it in the meantime.
            _refuse_existing(target, replace)
            _refuse_replaced(temporary, file, below)
            disk.rename(temporary, target, below=below)
    except BaseException:
        _remove_file(temporary, below)
        raise
    disk.sync_directory(target.parent)


def _refuse_replaced(path: Path, file: BinaryIO, below: Path | None) -> None:
    """Check that a path still names the opened file. Raises OSError."""
    with folder_of(path, below) as folder:
        facts = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
    if not os.path.samestat(facts, os.fstat(file.fileno())):
        raise OSError(errno.ESTALE, "another file has taken its place", str(path))


def _remove_file(path: Path, below: Path | None) -> None:
    with contextlib.suppress(OSError), folder_of(path, below) as folder:
        os.unlink(path.name, dir_fd=folder)


def remove_temporaries(
    directory: Path, names: Collection[str], *, below: Path | None = None
) -> None:
    """Remove what processes have left that were killed while they replaced files of these names."""
    with contextlib.suppress(OSError), folder_of(directory / "any", below) as folder:
        for name in os.listdir(folder):
            match = _TEMPORARY_NAME.fullmatch(name)
            if match is not None and match[1] in names:
                with contextlib.suppress(OSError):  # what stays costs disk space and nothing else
                    os.unlink(name, dir_fd=folder)


def _temporary_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}")


def _refuse_existing(target: Path, replace: bool) -> None:
    if not replace and os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    # The rename would delete a device.
    if os.path.exists(target) and not os.path.isfile(target):
        raise FileExistsError(errno.EEXIST, "it exists and is not a regular file", str(target))


def append_lines(path: Path, lines: bytes) -> bool:
    """Append complete lines in one write, and return whether the disk had room for all of them.

    Raises OSError.
    """
    # One write with O_APPEND, so that lines of two processes never mix.
    descriptor = open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        # A write on a full disk may have stored only the beginning of a line.
        data = b"\n" + lines if torn else lines
        return os.write(descriptor, data) == len(data)
    finally:
        os.close(descriptor)


def write_json(
    path: Path,
    content: dict[str, Any],
    disk: Disk | None = None,
    *,
    mode: int | None = None,
    below: Path | None = None,
) -> None:
    """Replace a small JSON file atomically. Raises OSError, as ``replace_file`` does."""
    text = json.dumps(content, indent=2).encode() + b"\n"
    replace_file(path, text, disk, mode=mode, below=below)


def replace_file(
    path: Path,
    content: bytes,
    disk: Disk | None = None,
    *,
    mode: int | None = None,
    below: Path | None = None,
) -> None:
    """Replace a file atomically: readers see the old content or the new, never a part.

    The file gets ``mode``, or what the umask leaves. Raises OSError; the old file then stays.
    """
    with atomic_replacement(path, disk or Disk(), replace=True, below=below) as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        file.write(content)


def replace_disposable_file(path: Path, content: bytes) -> None:
    """Replace a file whose loss costs nothing: nothing is synced. Raises OSError.

    Another process sees the old content or the new. After a power cut it may be damaged, which the
    reader must notice.
    """
    temporary = _temporary_path(path)
    try:
        with open(temporary, "xb", opener=_open_new) as file:
            file.write(content)
            file.flush()
            _refuse_replaced(temporary, file, None)
            os.rename(temporary, path)
    except BaseException:
        _remove_file(temporary, None)
        raise


def rotate(path: Path, older: Path, *, real_parents: int = 0) -> None:
    """Give a log the name of the older one beside it, which is replaced; nothing is synced.

    A name that leads elsewhere, such as a device's, is left alone. None of the last
    ``real_parents`` directories above the file may be a link. Raises OSError.
    """
    folder = open_folder(path, real_parents)
    try:
        if stat.S_ISREG(os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.replace(path.name, older.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)
