"""A log in at most two files: when the newer one is full, it takes the place of the older one."""

import contextlib
import os
from pathlib import Path

from orchestrator.system.durable import rotate
from orchestrator.system.regular_files import NEW_DIRECTORY_MODE, open_regular

MOST_READ_BYTES = 16 << 20


def older_path(path: Path) -> Path:
    """Return the file that has what came before the content of ``path``: output.1.log."""
    return path.with_name(f"{path.stem}.1{path.suffix}")


class RotatingFile:
    """Appends to a file, which becomes the older one when it would exceed ``limit_bytes``.

    The file is opened as ``open_regular`` does.
    """

    def __init__(self, path: Path, limit_bytes: int, *, real_parents: int = 0) -> None:
        self.path = path
        self._limit_bytes = limit_bytes
        self._real_parents = real_parents
        self._descriptor: int | None = None

    def write(self, data: bytes) -> int:
        """Append ``data`` and return how much of it the disk took. Raises OSError."""
        descriptor = self._open()
        size = os.fstat(descriptor).st_size
        if size > 0 and size + len(data) > self._limit_bytes:
            self.close()
            rotate(self.path, older_path(self.path), real_parents=self._real_parents)
            descriptor = self._open()
        return os.write(descriptor, data)

    def _open(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(NEW_DIRECTORY_MODE, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._descriptor = open_regular(self.path, flags, real_parents=self._real_parents)
        return self._descriptor

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_end(path: Path, maximum_bytes: int, *, real_parents: int = 0) -> bytes:
    """Return the end of a log, from the older file too where the newer one is short.

    Raises OSError when there is no newer one, or it cannot be read.
    """
    end = _end_of(path, maximum_bytes, real_parents)
    if len(end) < maximum_bytes:
        with contextlib.suppress(OSError):
            end = _end_of(older_path(path), maximum_bytes - len(end), real_parents) + end
    return end


def read_since(path: Path, size: int) -> bytes:
    """Return what was appended since the log had this size, rotated at most once meanwhile.

    Of very much it is the beginning. Raises OSError.
    """
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        is_rotated = file.seek(0, os.SEEK_END) < size
        file.seek(0 if is_rotated else size)
        newest = file.read(MOST_READ_BYTES)
    if not is_rotated:
        return newest
    with open(open_regular(older_path(path), os.O_RDONLY), "rb") as file:
        file.seek(size)
        return file.read(MOST_READ_BYTES) + newest


def _end_of(path: Path, maximum_bytes: int, real_parents: int) -> bytes:
    with open(open_regular(path, os.O_RDONLY, real_parents=real_parents), "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - maximum_bytes))
        return file.read(maximum_bytes)
