"""A file whose writes bypass the page cache."""

import contextlib
import errno
import fcntl
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.system.capabilities import Capability, is_available

# The alignment that O_DIRECT requires of addresses, lengths and offsets; a page suits every disk.
DIRECT_BLOCK_BYTES = 4096
_O_DIRECT = getattr(os, "O_DIRECT", 0)


class DirectFile(io.FileIO):
    """A new file whose writes bypass the page cache, so that the training's data stays cached.

    On a filesystem without O_DIRECT, writes are buffered, and their pages are dropped from the
    cache after a sync. The end of a file that does not fill a block is always written this way.
    """

    def __init__(self, path: Path, opener: Callable[[str, int], int] | None = None) -> None:
        super().__init__(str(path), "xb", opener=opener)
        # Not passed to open(): an open() that refuses the flag may leave the file behind.
        if is_available(Capability.DIRECT_IO):
            with contextlib.suppress(OSError):
                self._set_flags(self._flags() | _O_DIRECT)

    def write(self, data: Any) -> int:
        """Write all of ``data`` and return its length in bytes.

        Only the last write of a file may have a length that is not a multiple of the block size.
        """
        # Released on an error too, whose traceback would otherwise keep shared memory mapped.
        with memoryview(data) as given, given.cast("B") as view:
            return self._write_all(view)

    def _write_all(self, view: memoryview) -> int:
        done = 0
        while done < len(view):
            remaining = len(view) - done
            if self._is_direct and remaining < DIRECT_BLOCK_BYTES:
                self._switch_to_buffered()
            length = remaining - remaining % DIRECT_BLOCK_BYTES if self._is_direct else remaining
            try:
                with view[done : done + length] as part:
                    done += os.write(self.fileno(), part)
            except OSError as error:
                # Some filesystems accept the flag and refuse the write.
                if not (self._is_direct and error.errno == errno.EINVAL):
                    raise
                self._switch_to_buffered()
        return done

    def drop_cache(self) -> None:
        """Drop the file's synced pages from the page cache."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    @property
    def _is_direct(self) -> bool:
        return bool(self._flags() & _O_DIRECT)

    def _switch_to_buffered(self) -> None:
        self._set_flags(self._flags() & ~_O_DIRECT)

    def _flags(self) -> int:
        return fcntl.fcntl(self.fileno(), fcntl.F_GETFL)

    def _set_flags(self, flags: int) -> None:
        fcntl.fcntl(self.fileno(), fcntl.F_SETFL, flags)
