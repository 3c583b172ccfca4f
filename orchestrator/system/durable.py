"""The only module that calls fsync and rename.

A file or directory is durable once its own bytes *and* the directory entry that names it have been
synced; a rename is durable once the parent directory has been synced.
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from orchestrator.system.capabilities import Capability, has

WRITE_BUFFER_BYTES = 1 << 20
# What O_DIRECT asks of addresses, lengths and offsets: a page satisfies every disk.
DIRECT_BLOCK_BYTES = 4096
_O_DIRECT = getattr(os, "O_DIRECT", 0)


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

    def create_direct(self, path: Path) -> BinaryIO:
        """Like ``create``, for large pieces of page-aligned memory that go past the page cache."""
        return cast(BinaryIO, DirectFile(path))

    def sync(self, file: BinaryIO) -> None:
        """Bring a written file's bytes to the disk."""
        file.flush()
        os.fsync(file.fileno())
        if isinstance(file, DirectFile):
            file.drop_cache()

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

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name."""
        os.link(source, target)

    def remove(self, path: Path) -> None:
        """Remove one file or one empty directory."""
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


class DirectFile(io.FileIO):
    """A new file whose writes go past the page cache, which then keeps what training reads.

    Where the filesystem has no O_DIRECT, writes are buffered, and dropped from the cache once they
    are synced. The end of a file, which is no whole block, is always written like that.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "xb")
        # Set afterwards: an open that is refused for it may leave the file behind.
        if has(Capability.DIRECT_IO):
            with contextlib.suppress(OSError):
                self._set_flags(self._flags() | _O_DIRECT)

    def write(self, data: Any) -> int:
        """Write all of ``data``, in bytes; only the last piece of a file may be no whole block."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            left = len(view) - done
            if self._is_direct and left < DIRECT_BLOCK_BYTES:
                self._be_buffered()
            whole = left - left % DIRECT_BLOCK_BYTES if self._is_direct else left
            try:
                done += os.write(self.fileno(), view[done : done + whole])
            except OSError as error:
                # Some filesystems take the flag and refuse the write.
                if not (self._is_direct and error.errno == errno.EINVAL):
                    raise
                self._be_buffered()
        return done

    def drop_cache(self) -> None:
        """Have the kernel forget the file's pages, once they are on the disk."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    @property
    def _is_direct(self) -> bool:
        return bool(self._flags() & _O_DIRECT)

    def _be_buffered(self) -> None:
        self._set_flags(self._flags() & ~_O_DIRECT)

    def _flags(self) -> int:
        return fcntl.fcntl(self.fileno(), fcntl.F_GETFL)

    def _set_flags(self, flags: int) -> None:
        fcntl.fcntl(self.fileno(), fcntl.F_SETFL, flags)


@contextlib.contextmanager
def arriving(target: Path, disk: Disk, *, replace: bool) -> Iterator[Path]:
    """A path beside ``target`` for the block to write to and to sync; then it takes the name.

    Readers see the old file or the whole new one. Raises OSError, FileExistsError where the name
    is taken and ``replace`` is false; whatever ends the block, nothing else is left.
    """
    _refuse_existing(target, replace)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        # Somebody may have made it meanwhile.
        _refuse_existing(target, replace)
        disk.rename(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    disk.sync_directory(target.parent)


def _refuse_existing(target: Path, replace: bool) -> None:
    if not replace and os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    # A device would be gone.
    if target.exists() and not target.is_file():
        raise FileExistsError(errno.EEXIST, "it exists and is not a regular file", str(target))


def append_lines(path: Path, lines: bytes) -> bool:
    """Append whole lines in one write; whether there was room for all. Raises OSError."""
    # One write on O_APPEND: lines of two processes never mix.
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        # On a disk that is just filling up the beginning of a line may have had room.
        data = b"\n" + lines if torn else lines
        return os.write(descriptor, data) == len(data)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: dict[str, Any], disk: Disk | None = None) -> None:
    """Replace a small JSON file; as ``replace_file``."""
    replace_file(path, json.dumps(content, indent=2).encode() + b"\n", disk)


def replace_file(path: Path, content: bytes, disk: Disk | None = None) -> None:
    """Replace a file so that readers see the old or the new one, never a part.

    Raises OSError; the old file is then still there.
    """
    disk = disk or Disk()
    with arriving(path, disk, replace=True) as temporary, disk.create(temporary) as file:
        file.write(content)
        disk.sync(file)
