"""A log in at most two files: when the newer one is full, it takes the place of the older one."""

import contextlib
import os
from pathlib import Path

from orchestrator.system.durable import rotate


def older_path(path: Path) -> Path:
    """Return the file that has what came before the content of ``path``: output.1.log."""
    return path.with_name(f"{path.stem}.1{path.suffix}")


class RotatingFile:
    """Appends to a file, which becomes the older one when it would exceed ``limit_bytes``."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self.path = path
        self._limit_bytes = limit_bytes
        self._descriptor: int | None = None

    def write(self, data: bytes) -> int:
        """Append ``data`` and return how much of it the disk took. Raises OSError."""
        descriptor = self._open()
        size = os.fstat(descriptor).st_size
        if size > 0 and size + len(data) > self._limit_bytes:
            self.close()
            rotate(self.path, older_path(self.path))
            descriptor = self._open()
        return os.write(descriptor, data)

    def _open(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o644)
        return self._descriptor

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_end(path: Path, maximum_bytes: int) -> bytes:
    """Return the end of a log, from the older file too where the newer one is short.

    Raises OSError when there is no newer one, or it cannot be read.
    """
    end = _end_of(path, maximum_bytes)
    if len(end) < maximum_bytes:
        with contextlib.suppress(OSError):
            end = _end_of(older_path(path), maximum_bytes - len(end)) + end
    return end


def _end_of(path: Path, maximum_bytes: int) -> bytes:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - maximum_bytes))
        return file.read(maximum_bytes)
