"""A slot of the snapshot memory as the trainer sees it: mapped, populated, pinned for CUDA."""

import ctypes
import mmap
import os
import threading
import time
from typing import Any

import torch

MADV_POPULATE_WRITE = 23
# One call holds the process's memory map, for which the training loop may be waiting.
POPULATE_CHUNK_BYTES = 16 << 20
# To populate this much takes a few milliseconds: not worth a thread and a wait.
INLINE_BYTES = 32 << 20
# Room for a pickled part that grows, so that the memory is not mapped again each time.
SPARE_SHARE = 8
SPARE_BYTES = 1 << 20


class SlotMemory:
    """The mapping of one slot; ``data`` is all of it as a tensor of bytes."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.data = torch.empty(0, dtype=torch.uint8)
        self._populating: threading.Thread | None = None
        self._pinned_address: int | None = None

    @property
    def capacity(self) -> int:
        """The number of bytes that are mapped."""
        return self.data.numel()

    @property
    def address(self) -> int:
        """The address at which it is mapped."""
        return self.data.data_ptr()

    def missing_bytes(self, needed: int) -> int:
        """Return how much more memory an image of ``needed`` bytes takes from the system."""
        return max(0, with_spare(needed) - os.fstat(self.descriptor).st_blocks * 512)

    def prepare(self, needed: int, *, pin: bool) -> None:
        """Map room for ``needed`` bytes and populate it; in a thread where it is much.

        Without that the first copy would run at a tenth of its speed, for the page faults.

        Raises:
            OSError: There is no memory.
        """
        if needed <= self.capacity:
            return
        self.unpin()
        size = with_spare(needed)
        if os.fstat(self.descriptor).st_size < size:
            os.ftruncate(self.descriptor, size)
        self.data = torch.frombuffer(mmap.mmap(self.descriptor, size), dtype=torch.uint8)
        if size <= INLINE_BYTES:
            self._populate(pin)
        else:
            self._populating = threading.Thread(
                target=self._populate, args=(pin,), name="populate", daemon=True
            )
            self._populating.start()

    @property
    def is_ready(self) -> bool:
        """Whether the memory is populated."""
        return self._populating is None or not self._populating.is_alive()

    def wait_until_ready(self, deadline: float) -> None:
        """Wait until it is populated, at most until ``deadline`` (time.monotonic)."""
        if self._populating is not None:
            self._populating.join(max(0.0, deadline - time.monotonic()))

    def _populate(self, pin: bool) -> None:
        # ctypes releases the interpreter lock, mmap.madvise does not. Where the kernel does not
        # know the advice, the first copy is slow and nothing else happens.
        madvise = ctypes.CDLL(None).madvise
        for offset in range(0, self.capacity, POPULATE_CHUNK_BYTES):
            length = min(POPULATE_CHUNK_BYTES, self.capacity - offset)
            madvise(
                ctypes.c_void_p(self.address + offset),
                ctypes.c_size_t(length),
                MADV_POPULATE_WRITE,
            )
        if pin:
            self._pin()

    def _pin(self) -> None:
        # Without pinning the copy is only slower.
        if int(_cuda_runtime().cudaHostRegister(self.address, self.capacity, 0)) == 0:
            self._pinned_address = self.address

    @property
    def is_pinned(self) -> bool:
        """Whether a device copies into it without staging."""
        return self._pinned_address is not None

    def unpin(self) -> None:
        """Unregister the memory with CUDA, before it is unmapped or the process ends."""
        if self._populating is not None:
            self._populating.join()
        if self._pinned_address is not None:
            _cuda_runtime().cudaHostUnregister(self._pinned_address)
            self._pinned_address = None

    def write(self, offset: int, data: bytes) -> None:
        """Copy bytes to an offset."""
        ctypes.memmove(self.address + offset, data, len(data))

    def move(self, source: int, target: int, length: int) -> None:
        """Move bytes from one offset to another; the two ranges may overlap."""
        ctypes.memmove(self.address + target, self.address + source, length)


def _cuda_runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def with_spare(image_bytes: int) -> int:
    """Return how large a slot is for an image of ``image_bytes``, in whole pages."""
    wanted = image_bytes + image_bytes // SPARE_SHARE + SPARE_BYTES
    return -(-wanted // mmap.PAGESIZE) * mmap.PAGESIZE
