"""Writes snapshots to disk as checkpoints: one at a time, past the page cache, without torch."""

import errno
import mmap
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.contents import STATE_FILE, rank_file
from orchestrator.checkpoint.digesting_writer import DigestingWriter
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.publication import publish_state
from orchestrator.checkpoint.shards import SHARDS_FILE, ShardIndex
from orchestrator.checkpoint.store import Store
from orchestrator.snapshot.disk_reserve import keep_reserve, with_reserve
from orchestrator.snapshot.slots import Snapshot
from orchestrator.system.heartbeat import Heartbeat
from orchestrator.system.priority import lower_priority
from orchestrator.system.second_thread import in_second_thread

CHUNK_BYTES = 8 << 20
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
            publish = partial(self._publish, snapshot, reason)
            if reason in LAST_CHANCES:
                return with_reserve(self.store.run, publish)
            lower_priority()
            checkpoint = publish()
            image_bytes = sum(part.image_bytes for part in (snapshot, *snapshot.others))
            keep_reserve(self.store.run, image_bytes)
            return checkpoint

    def _publish(self, snapshot: Snapshot, reason: Reason) -> Checkpoint:
        def copy(part: Snapshot, file: DigestingWriter) -> None:
            for chunk in _chunks(part):
                self.heartbeat.beat()
                file.write(chunk)

        manifest = replace(snapshot.manifest, reason=reason)
        others = {
            rank_file(rank): partial(copy, part) for rank, part in enumerate(snapshot.others, 1)
        }
        if (text := _index_of(snapshot)) is not None:
            others[SHARDS_FILE] = partial(_write, text)
        try:
            return publish_state(
                self.store, manifest, partial(copy, snapshot), direct=True, parts=others
            )
        finally:
            self.heartbeat.pause()


def _index_of(snapshot: Snapshot) -> bytes | None:
    """Return the index of what all ranks hold of sharded tensors; None where nothing is sharded.

    Raises ValueError where the parts do not fit together, or are not all of a tensor.
    """
    files = {STATE_FILE: snapshot}
    files |= {rank_file(rank): part for rank, part in enumerate(snapshot.others, 1)}
    texts = {name: part.index.read() for name, part in files.items() if part.index is not None}
    if not texts:
        return None
    parts = [ShardIndex.from_json(text, {name}) for name, text in texts.items()]
    index = ShardIndex.joined(parts)
    index.check_complete()
    return index.to_json()


def _write(text: bytes, file: DigestingWriter) -> None:
    file.write(text)


def _chunks(snapshot: Snapshot) -> Iterator[memoryview]:
    """Yield the bytes of an image in pieces, each valid until the next, which is read meanwhile.

    They are read, not mapped: the trainer may truncate the memory at any time, and a process that
    touches a mapping beyond the end is killed by SIGBUS. The buffers are aligned, for direct
    writes. Raises OSError when the memory is shorter than the image.
    """
    # Not closed: a writer that has failed may still hold a piece.
    buffers = [memoryview(mmap.mmap(-1, CHUNK_BYTES)) for _ in range(2)]

    def read(offset: int) -> memoryview:
        chunk = buffers[offset // CHUNK_BYTES % 2][: snapshot.image_bytes - offset]
        if os.preadv(snapshot.descriptor, [chunk], offset) < len(chunk):
            raise OSError(errno.EIO, "the snapshot's memory is shorter than its image")
        return chunk

    chunk = read(0)
    for offset in range(CHUNK_BYTES, snapshot.image_bytes, CHUNK_BYTES):
        with in_second_thread(partial(read, offset)) as following:
            yield chunk
        chunk = following.result()
    yield chunk
