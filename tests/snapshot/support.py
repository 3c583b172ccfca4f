"""Makes snapshots of random bytes, and writes them."""

import os
import random
from concurrent.futures import ThreadPoolExecutor

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Reason
from orchestrator.snapshot.slots import Slots, Snapshot
from orchestrator.snapshot.writer import Writer
from tests.checkpoint.support import manifest_of


def snapshot_of(slots: Slots, step: int, size: int) -> Snapshot:
    """A snapshot of random bytes, with rubbish behind the image."""
    slot = step % 2
    slots.begin(slot)
    os.pwrite(slots.images[slot], random.Random(step).randbytes(size) + b"rubbish", 0)
    return slots.commit(slot, size, manifest_of(step))


def write(writer: Writer, snapshot: Snapshot, reason: Reason) -> Checkpoint:
    """In a thread of its own, whose priority it may lower for good."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(writer.write, snapshot, reason).result()
