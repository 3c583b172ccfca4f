"""The control page: a small array of 64-bit integers shared by supervisor and trainer.

The trainer's hot path reads and writes it without a system call, and the supervisor can read it
when the trainer hangs or is gone. Each field has one writer (docs/reference/process-contract.md).
"""

import mmap
import os
import tempfile
from enum import IntEnum
from typing import Self

from orchestrator.system.capabilities import Capability, has

PAGE_BYTES = 4096
PAGE_VERSION = 1


class Field(IntEnum):
    """Index of each value. Times are CLOCK_MONOTONIC in nanoseconds."""

    VERSION = 0
    # Written by the trainer.
    STEP = 1
    EPOCH = 2
    PHASE = 3
    HEARTBEAT_NS = 4
    SAFE_POINTS = 5
    # Written by the supervisor.
    STOP_REQUEST = 16
    STOP_DEADLINE_NS = 17
    CHECKPOINT_REQUESTS = 18
    # Written by the trainer: SLOT_VALUES for each slot of the snapshot memory.
    SLOT_TABLE = 32


class SlotField(IntEnum):
    """Index of each value within a slot's part of the table."""

    BEGUN = 0
    COMPLETE = 1
    IMAGE_BYTES = 2
    MANIFEST_BYTES = 3
    STEP = 4
    EPOCH = 5
    TAKEN_NS = 6


SLOT_VALUES = 8


class Phase(IntEnum):
    """What the trainer is doing."""

    START = 0
    RESTORE = 1
    TRAIN = 2
    SAVE = 3
    DONE = 4
    EVALUATE = 5


class ControlPage:
    """The mapped page; ``values[Field.STEP]`` reads, assignment writes, both atomic in practice.

    An aligned 64-bit store is one instruction on every platform that torch supports.
    """

    def __init__(self, descriptor: int) -> None:
        """Map the page behind a descriptor, which stays the caller's."""
        self._map = mmap.mmap(descriptor, PAGE_BYTES)
        self.values: memoryview[int] = memoryview(self._map).cast("q")

    @classmethod
    def create(cls) -> tuple[Self, int]:
        """A new zeroed page, and the descriptor to hand to the trainer."""
        descriptor = anonymous_file("orchestrator-page")
        os.ftruncate(descriptor, PAGE_BYTES)
        page = cls(descriptor)
        page.values[Field.VERSION] = PAGE_VERSION
        return page, descriptor

    @property
    def phase(self) -> Phase:
        """What the trainer says it is doing."""
        try:
            return Phase(self.values[Field.PHASE])
        except ValueError:
            # Whatever a broken trainer scribbled there, it has to be described and killed.
            return Phase.TRAIN


def anonymous_file(name: str) -> int:
    """A descriptor of memory that is gone with its last holder; of a nameless file elsewhere."""
    if has(Capability.MEMFD):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
