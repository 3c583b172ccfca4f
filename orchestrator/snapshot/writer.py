"""Writes snapshots to disk as checkpoints: one at a time, past the page cache, without torch."""

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.digesting_writer import DigestingWriter
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.store import Store
from orchestrator.errors import FULL_DISK, CheckpointWriteError
from orchestrator.snapshot.slots import Snapshot
from orchestrator.system.heartbeat import Heartbeat
from orchestrator.system.priority import lower_priority
from orchestrator.system.regular_files import open_regular

CHUNK_BYTES = 16 << 20
# Room for the manifest, for directories, and for a file that has grown since.
RESERVE_MARGIN_BYTES = 1 << 16
# The time that a stop allows for writes, in units of the last write: one under way, the final one,
# and a disk that is slower than before.
WRITE_ALLOWANCE = 2.5
# After a write for one of these reasons there may be no other.
LAST_CHANCES = frozenset({Reason.EMERGENCY, Reason.CRASH, Reason.FINAL})


@dataclass
class Writer:
    """Writes the snapshots of a run, one at a time; ``write`` blocks, so call it in a thread."""

    store: Store
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def write(self, snapshot: Snapshot, reason: Reason) -> Checkpoint:
        """Publish a snapshot, which must not change meanwhile, and return the checkpoint.

        A write that may be the last may use the disk space in reserve. Raises CheckpointWriteError.
        """
        with self._one_at_a_time:
            if reason not in LAST_CHANCES:
                lower_priority()
                checkpoint = self._publish(snapshot, reason)
                self._keep_reserve(snapshot.image_bytes + RESERVE_MARGIN_BYTES)
                return checkpoint
            try:
                return self._publish(snapshot, reason)
            except CheckpointWriteError as error:
                if error.cause.errno not in FULL_DISK or not self._free_reserve():
                    raise
                return self._publish(snapshot, reason)

    def _publish(self, snapshot: Snapshot, reason: Reason) -> Checkpoint:
        def copy(file: DigestingWriter) -> None:
            for chunk in _chunks(snapshot):
                self.heartbeat.beat()
                file.write(chunk)

        manifest = replace(snapshot.manifest, reason=reason)
        try:
            return self.store.publish(manifest, copy, direct=True)
        finally:
            self.heartbeat.pause()

    def _keep_reserve(self, size: int) -> None:
        """Reserve ``size`` bytes of disk, if at least twice as much is free."""
        with contextlib.suppress(OSError, AttributeError):  # not every system can allocate
            path = self.store.run.reserve_file
            if os.path.exists(path) and path.stat().st_size >= size:
                return
            room = os.statvfs(self.store.run.root)
            if room.f_bavail * room.f_frsize > 2 * size:
                _reserve(path, size)

    def _free_reserve(self) -> bool:
        try:
            self.store.run.reserve_file.unlink()
        except OSError:
            return False
        return True


def _chunks(snapshot: Snapshot) -> Iterator[memoryview]:
    """Yield the bytes of an image in pieces, each valid until the next.

    They are read, not mapped: the trainer may truncate the memory at any time, and a process that
    touches a mapping beyond the end is killed by SIGBUS. The buffer is aligned, for direct writes.
    Raises OSError when the memory is shorter than the image.
    """
    # Not closed: a writer that has failed may still hold a piece.
    buffer = memoryview(mmap.mmap(-1, CHUNK_BYTES))
    for offset in range(0, snapshot.image_bytes, CHUNK_BYTES):
        chunk = buffer[: snapshot.image_bytes - offset]
        if os.preadv(snapshot.descriptor, [chunk], offset) < len(chunk):
            raise OSError(errno.EIO, "the snapshot's memory is shorter than its image")
        yield chunk


def _reserve(path: Path, size: int) -> None:
    descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        path.unlink()
    finally:
        os.close(descriptor)
