"""The snapshot memory: slots that each hold the image of one checkpoint file.

A slot is anonymous shared memory with the image at its beginning. The manifests of the images are
in a memory of their own, and behind them, in a run that has sharded tensors, the indices of these.
The trainer writes; the supervisor, which owns the memory, reads a slot only when the trainer asks
for that or has ended. The table on the control page tells a complete image from a torn one: the
trainer sets BEGUN to a new generation, fills the slot, and last sets COMPLETE to the same
generation.
"""

import errno
import os
import time
from dataclasses import dataclass, replace
from typing import Self

from orchestrator.checkpoint.manifest import MAXIMUM_MANIFEST_BYTES, Manifest
from orchestrator.checkpoint.position import Position
from orchestrator.checkpoint.shards import MAXIMUM_INDEX_BYTES
from orchestrator.ipc.control_page import SLOT_VALUES, ControlPage, Field, SlotField, anonymous_file

SLOT_COUNT = 2


@dataclass(frozen=True)
class Image:
    """The image in a slot: its descriptor, and its size in bytes."""

    descriptor: int
    image_bytes: int


@dataclass(frozen=True)
class IndexText:
    """Where the text of an index of sharded tensors is: a descriptor, and offset and size in bytes.

    ``checkpoint/shards.py`` parses it.
    """

    descriptor: int
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the text. Raises OSError."""
        return os.pread(self.descriptor, self.size, self.offset)


@dataclass(frozen=True)
class Snapshot:
    """A complete image: where it is, and what it holds."""

    slot: int
    generation: int
    descriptor: int
    image_bytes: int
    manifest: Manifest
    """The manifest that the image would be published with, without files.

    Its digests have ``first_batch``, of the batch that the loop took first after it, where there is
    one so far.
    """
    taken_ns: int
    """When it was completed, by CLOCK_MONOTONIC."""
    others: tuple["Snapshot", ...] = ()
    """The parts of the other ranks, in a run of several; this is then rank 0's."""
    index: IndexText | None = None
    """What this rank holds of sharded tensors; None where nothing is sharded."""

    @property
    def position(self) -> Position:
        """The steps and epochs that the image has completed."""
        return self.manifest.position


class Slots:
    """The slots of a run and their table, which moves from one attempt's control page to the next.

    Generations count the snapshots of all attempts under one supervisor, from 1.
    """

    def __init__(self, page: ControlPage, descriptors: list[int]) -> None:
        """Take ownership of the ``descriptors``: those of the slots and, last, of the manifests."""
        *self.images, self._manifests = descriptors
        self._table = page.values

    @classmethod
    def create(cls, page: ControlPage) -> Self:
        """Create empty slots; they take memory only when images are written."""
        names = [f"orchestrator-slot-{index}" for index in range(SLOT_COUNT)]
        return cls(page, [anonymous_file(name) for name in (*names, "orchestrator-manifests")])

    @property
    def descriptors(self) -> list[int]:
        """The descriptors of the slots and of the manifests, as the other process needs them."""
        return [*self.images, self._manifests]

    def move_to(self, page: ControlPage) -> None:
        """Copy the table to the control page of the next attempt and use it there."""
        begin, end = Field.SLOT_TABLE, Field.SLOT_TABLE + SLOT_VALUES * len(self.images)
        page.values[begin:end] = self._table[begin:end]
        begin, end = Field.INDEX_BYTES, Field.INDEX_BYTES + len(self.images)
        page.values[begin:end] = self._table[begin:end]
        self._table = page.values

    # --- the trainer's side ------------------------------------------------------------------

    def begin(self, slot: int, generation: int | None = None) -> int:
        """Mark the slot as torn from now on, and return the generation of its next image.

        By default that is the next one; several ranks are told which ``generation`` they take.
        """
        if generation is None:
            indices = range(len(self.images))
            generation = 1 + max(self._get(index, SlotField.BEGUN) for index in indices)
        self._set(slot, SlotField.BEGUN, generation)
        self._set(slot, SlotField.FIRST_BATCH, 0)
        return generation

    def note_first_batch(self, slot: int, digest: int) -> None:
        """Keep a digest (63 bits, not 0) of the batch that came first after the slot's image."""
        self._set(slot, SlotField.FIRST_BATCH, digest)

    def commit(
        self, slot: int, image_bytes: int, manifest: Manifest, index: bytes = b""
    ) -> Snapshot:
        """Write the manifest and mark the slot as complete, with an image of ``image_bytes``.

        ``index`` is the text of what this rank holds of sharded tensors. Raises OSError where it is
        longer than any index may be.
        """
        text = manifest.to_json()
        os.pwrite(self._manifests, text, slot * MAXIMUM_MANIFEST_BYTES)
        if len(index) > MAXIMUM_INDEX_BYTES:
            raise OSError(errno.EFBIG, "the index of sharded tensors is too long")
        if index:
            os.pwrite(self._manifests, index, _index_offset(slot))
        if self._table[Field.INDEX_BYTES + slot] != len(index):
            self._table[Field.INDEX_BYTES + slot] = len(index)
        self._set(slot, SlotField.IMAGE_BYTES, image_bytes)
        self._set(slot, SlotField.MANIFEST_BYTES, len(text))
        self._set(slot, SlotField.STEP, manifest.step)
        self._set(slot, SlotField.EPOCH, manifest.epoch)
        self._set(slot, SlotField.TAKEN_NS, time.monotonic_ns())
        # Last: from here on the image is complete.
        self._set(slot, SlotField.COMPLETE, self._get(slot, SlotField.BEGUN))
        snapshot = self._read(slot)
        assert snapshot is not None
        return snapshot

    # --- both sides --------------------------------------------------------------------------

    def is_complete(self, slot: int) -> bool:
        """Return whether the slot holds a complete image."""
        complete = self._get(slot, SlotField.COMPLETE)
        return complete > 0 and complete == self._get(slot, SlotField.BEGUN)

    def generations(self) -> dict[int, int]:
        """Return the slot of each complete image by its generation, from the table alone."""
        complete = [i for i in range(len(self.images)) if self.is_complete(i)]
        return {self._get(index, SlotField.COMPLETE): index for index in complete}

    def newest_slot(self) -> int | None:
        """Return the slot of the newest complete image; None if there is none."""
        complete = self.generations()
        return complete[max(complete)] if complete else None

    def step_and_age(self, slot: int) -> tuple[int, float]:
        """Return step and age in seconds of the complete image in a slot, from the table alone."""
        age = (time.monotonic_ns() - self._get(slot, SlotField.TAKEN_NS)) / 1e9
        return self._get(slot, SlotField.STEP), max(0.0, age)

    def snapshots(self) -> list[Snapshot]:
        """Return the complete images, newest first."""
        found = [self._read(slot) for slot in range(len(self.images))]
        return sorted(filter(None, found), key=lambda s: s.generation, reverse=True)

    def forget(self) -> None:
        """Mark every slot as torn; call it only while no trainer runs."""
        for slot in range(len(self.images)):
            self._set(slot, SlotField.COMPLETE, 0)

    def close(self) -> None:
        """Close the descriptors; the memory is freed when the other process has done so too."""
        for descriptor in self.descriptors:
            os.close(descriptor)

    def _read(self, slot: int) -> Snapshot | None:
        if not self.is_complete(slot):
            return None
        length = min(self._get(slot, SlotField.MANIFEST_BYTES), MAXIMUM_MANIFEST_BYTES)
        try:
            text = os.pread(self._manifests, length, slot * MAXIMUM_MANIFEST_BYTES)
            manifest = Manifest.draft_from_json(text)
            if first_batch := self._get(slot, SlotField.FIRST_BATCH):
                digests = manifest.digests | {"first_batch": f"{first_batch:016x}"}
                manifest = replace(manifest, digests=digests)
            if self._get(slot, SlotField.IMAGE_BYTES) <= 0:
                raise ValueError("there is no image")
        except (OSError, ValueError, OverflowError):
            return None  # overwritten by a failing trainer: not to be trusted
        return Snapshot(
            slot=slot,
            generation=self._get(slot, SlotField.COMPLETE),
            descriptor=self.images[slot],
            image_bytes=self._get(slot, SlotField.IMAGE_BYTES),
            manifest=manifest,
            taken_ns=self._get(slot, SlotField.TAKEN_NS),
            index=self._index(slot),
        )

    def _index(self, slot: int) -> IndexText | None:
        # A failing trainer may have written anything.
        size = min(self._table[Field.INDEX_BYTES + slot], MAXIMUM_INDEX_BYTES)
        return IndexText(self._manifests, _index_offset(slot), size) if size > 0 else None

    def _get(self, slot: int, field: SlotField) -> int:
        return self._table[Field.SLOT_TABLE + SLOT_VALUES * slot + field]

    def _set(self, slot: int, field: SlotField, value: int) -> None:
        self._table[Field.SLOT_TABLE + SLOT_VALUES * slot + field] = value


def _index_offset(slot: int) -> int:
    return SLOT_COUNT * MAXIMUM_MANIFEST_BYTES + slot * MAXIMUM_INDEX_BYTES
