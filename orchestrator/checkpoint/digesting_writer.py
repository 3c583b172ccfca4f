"""A file that computes its digest while it is written."""

import contextlib
import threading
from collections.abc import Iterator
from typing import BinaryIO

import xxhash

from orchestrator.checkpoint.manifest import FileRecord

# From this size on a second thread computes the digest sooner.
BESIDE_BYTES = 1 << 20


class DigestingWriter:
    """A binary file for writing that computes the digest and size of what passes through."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = xxhash.xxh3_128()
        self._bytes = 0
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write all of ``data``. Raises OSError, kept in ``error`` too: torch hides the errno."""
        # Not len(): memory may consist of items larger than a byte.
        count = memoryview(data).nbytes
        with self._digesting(data, count):
            try:
                self._file.write(data)
            except OSError as error:
                self.error = self.error or error
                raise
        self._bytes += count
        return count

    @contextlib.contextmanager
    def _digesting(self, data: bytes | memoryview, count: int) -> Iterator[None]:
        """Add ``data`` to the digest before the block ends, a large piece in a second thread."""
        if count < BESIDE_BYTES:
            yield
            self._digest.update(data)
            return
        # The thread is ahead of the disk, and faults shared memory in for it.
        thread = threading.Thread(target=self._digest.update, args=(data,))
        try:
            thread.start()
        except RuntimeError:  # the system allows no more threads
            yield
            self._digest.update(data)
            return
        try:
            yield
        finally:
            thread.join()

    def flush(self) -> None:
        """Do nothing: callers expect a file, and the store syncs the bytes to the disk."""

    def record(self) -> FileRecord:
        """Return size and digest of what has been written."""
        return FileRecord(bytes=self._bytes, xxh3_128=self._digest.hexdigest())
