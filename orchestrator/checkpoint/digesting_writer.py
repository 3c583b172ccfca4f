"""A file that computes its digest while it is written."""

from functools import partial
from typing import BinaryIO

import xxhash

from orchestrator.checkpoint.manifest import FileRecord
from orchestrator.system.second_thread import in_second_thread

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
        if count < BESIDE_BYTES:
            self._write(data)
            self._digest.update(data)
        else:
            with in_second_thread(partial(self._digest.update, data)) as digested:
                self._write(data)
            digested.result()
        self._bytes += count
        return count

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        """Do nothing: callers expect a file, and the store syncs the bytes to the disk."""

    def record(self) -> FileRecord:
        """Return size and digest of what has been written."""
        return FileRecord(bytes=self._bytes, xxh3_128=self._digest.hexdigest())
