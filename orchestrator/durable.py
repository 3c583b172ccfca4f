"""The only module that calls fsync and rename.

A file or directory is durable once its own bytes *and* the directory entry that names it have been
synced; a rename is durable once the parent directory has been synced.
"""

import json
import os
import secrets
from pathlib import Path
from typing import Any, BinaryIO

WRITE_BUFFER_BYTES = 1 << 20


class Disk:
    """The operations that publishing and deleting are made of, so that a test can fail each one.

    Every method raises OSError as the system gave it.
    """

    def make_directory(self, path: Path) -> None:
        """Create a directory that must not exist yet."""
        path.mkdir()

    def create(self, path: Path) -> BinaryIO:
        """Open a file for writing that must not exist yet."""
        return open(path, "xb", buffering=WRITE_BUFFER_BYTES)

    def sync(self, file: BinaryIO) -> None:
        """Bring a written file's bytes to the disk."""
        file.flush()
        os.fsync(file.fileno())

    def sync_directory(self, path: Path) -> None:
        """Bring a directory's entries to the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or directory its new name in one atomic step."""
        os.rename(source, target)

    def remove(self, path: Path) -> None:
        """Remove one file or one empty directory."""
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


def write_json(path: Path, content: dict[str, Any], disk: Disk | None = None) -> None:
    """Replace a small JSON file so that readers see the old or the new one, never a part.

    Raises OSError; the old file is then still there.
    """
    disk = disk or Disk()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with disk.create(temporary) as file:
            file.write(json.dumps(content, indent=2).encode() + b"\n")
            disk.sync(file)
        disk.rename(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    disk.sync_directory(path.parent)
