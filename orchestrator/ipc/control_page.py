"""The control page: a small array of 64-bit integers shared by supervisor and trainer.

The trainer reads and writes it at every step without a system call, and the supervisor can read it
after the trainer hangs or has died. Each field has one writer (docs/reference/process-contract.md).
"""

import fcntl
import mmap
import os
import tempfile
from enum import IntEnum
from typing import Self

from orchestrator.system.capabilities import Capability, is_available
from orchestrator.system.process_tree import PAGE_NAME

PAGE_BYTES = 4096
PAGE_VERSION = 1


class Field(IntEnum):
    """The index of each value. Times are CLOCK_MONOTONIC in nanoseconds."""

    VERSION = 0
    # Written by the trainer.
    STEP = 1
    EPOCH = 2
    PHASE = 3
    HEARTBEAT_NS = 4
    SAFE_POINTS = 5
    # Written by the trainer, with several ranks only (ipc/place_agreement.py).
    PLACES = 6
    AT_END = 7
    SNAPSHOT_COST_NS = 8
    # Written by the trainer; 0 while unknown.
    TOTAL_STEPS = 9
    TOTAL_EPOCHS = 10
    # Written by the trainer: what its time is spent for (ipc/training_time.py).
    TRAINING_NS = 11
    SAVING_NS = 12
    SAVED_NS = 13
    # Written by the supervisor.
    STOP_REQUEST = 16
    STOP_DEADLINE_NS = 17
    CHECKPOINT_REQUESTS = 18
    DECIDING = 19
    DECISION = 20
    # Written by the trainer: SLOT_VALUES for each slot of the snapshot memory.
    SLOT_TABLE = 32


class SlotField(IntEnum):
    """The index of each value within a slot's part of the table."""

    BEGUN = 0
    COMPLETE = 1
    IMAGE_BYTES = 2
    MANIFEST_BYTES = 3
    STEP = 4
    EPOCH = 5
    TAKEN_NS = 6
    FIRST_BATCH = 7


SLOT_VALUES = 8


class Phase(IntEnum):
    """The phase of a trainer."""

    START = 0
    RESTORE = 1
    TRAIN = 2
    SAVE = 3
    DONE = 4
    EVALUATE = 5


class ControlPage:
    """The mapped page; ``values[Field.STEP]`` reads a value, and an assignment writes it.

    Both are atomic in practice: an aligned 64-bit access is one instruction on every platform that
    torch supports.
    """

    def __init__(self, descriptor: int) -> None:
        """Map the page of a descriptor, which the caller must close."""
        self._map = mmap.mmap(descriptor, PAGE_BYTES)
        self.values: memoryview[int] = memoryview(self._map).cast("q")

    @classmethod
    def create(cls) -> tuple[Self, int]:
        """Create a zeroed page, and return it with the descriptor to pass to the trainer."""
        descriptor = anonymous_file(PAGE_NAME)
        os.ftruncate(descriptor, PAGE_BYTES)
        _fix_size(descriptor)
        page = cls(descriptor)
        page.values[Field.VERSION] = PAGE_VERSION
        return page, descriptor

    @property
    def phase(self) -> Phase:
        """The trainer's current phase."""
        try:
            return Phase(self.values[Field.PHASE])
        except ValueError:
            # A broken trainer may write anything, and must still be described and killed.
            return Phase.TRAIN

    @property
    def total_steps(self) -> int | None:
        """The steps of the whole training; None while unknown."""
        return self._total(Field.TOTAL_STEPS)

    @property
    def total_epochs(self) -> int | None:
        """The epochs of the whole training; None while unknown."""
        return self._total(Field.TOTAL_EPOCHS)

    def _total(self, field: Field) -> int | None:
        value = self.values[field]
        return value if value > 0 else None


def _fix_size(descriptor: int) -> None:
    """Keep a trainer from truncating the page, which would kill the supervisor with SIGBUS."""
    # A temporary file, which takes the place of the memory elsewhere, has no seals.
    if is_available(Capability.MEMFD) and hasattr(fcntl, "F_ADD_SEALS"):
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)


def anonymous_file(name: str) -> int:
    """Return a descriptor of memory that is freed when its last descriptor is closed.

    On systems without memfd it is an unnamed temporary file.
    """
    if is_available(Capability.MEMFD):
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
