"""The snapshot memory: slots that each hold the image of one checkpoint file.

A slot is anonymous shared memory with the image at its beginning; the manifests that the images
would be published with lie in memory of their own. The trainer writes; the supervisor, which owns
the memory, reads a slot only when the trainer asked for that or has ended. The table on the control
page tells a complete image from a torn one: a writer sets BEGUN to a new generation, fills the
slot, and sets COMPLETE to the same generation last.
"""

import os
import time
from dataclasses import dataclass
from typing import Self

from orchestrator.checkpoint.manifest import MAXIMUM_MANIFEST_BYTES, Manifest
from orchestrator.ipc.control_page import SLOT_VALUES, ControlPage, Field, SlotField, anonymous_file

SLOT_COUNT = 2


@dataclass(frozen=True)
class Snapshot:
    """A complete image: where it is, and what it holds. ``taken_ns`` is CLOCK_MONOTONIC."""

    slot: int
    generation: int
    descriptor: int
    image_bytes: int
    manifest: Manifest
    taken_ns: int

    @property
    def order(self) -> tuple[int, int]:
        """Steps and epochs that are in it."""
        return self.manifest.step, self.manifest.epoch


class Slots:
    """The slots of a run and their table, which moves from one attempt's control page to the next.

    Generations count all snapshots of a supervisor's life, from 1.
    """

    def __init__(self, page: ControlPage, descriptors: list[int]) -> None:
        """Take over the ``descriptors`` of the slots and, last, of the manifests."""
        *self.images, self._manifests = descriptors
        self._table = page.values

    @classmethod
    def create(cls, page: ControlPage) -> Self:
        """Empty slots; memory is taken when images are put there."""
        names = [f"orchestrator-slot-{index}" for index in range(SLOT_COUNT)]
        return cls(page, [anonymous_file(name) for name in (*names, "orchestrator-manifests")])

    @property
    def descriptors(self) -> list[int]:
        """What the other side needs to take part."""
        return [*self.images, self._manifests]

    def move_to(self, page: ControlPage) -> None:
        """Go on with the same snapshots on the control page of the next attempt."""
        begin, end = Field.SLOT_TABLE, Field.SLOT_TABLE + SLOT_VALUES * len(self.images)
        page.values[begin:end] = self._table[begin:end]
        self._table = page.values

    # --- the trainer's side ------------------------------------------------------------------

    def begin(self, slot: int) -> int:
        """Declare the slot torn from now on; the generation of what will be put there."""
        indices = range(len(self.images))
        generation = 1 + max(self._get(index, SlotField.BEGUN) for index in indices)
        self._set(slot, SlotField.BEGUN, generation)
        return generation

    def commit(self, slot: int, image_bytes: int, manifest: Manifest) -> Snapshot:
        """Declare the slot complete: ``image_bytes`` of image are there. Writes the manifest."""
        text = manifest.to_json()
        os.pwrite(self._manifests, text, slot * MAXIMUM_MANIFEST_BYTES)
        self._set(slot, SlotField.IMAGE_BYTES, image_bytes)
        self._set(slot, SlotField.MANIFEST_BYTES, len(text))
        self._set(slot, SlotField.STEP, manifest.step)
        self._set(slot, SlotField.EPOCH, manifest.epoch)
        self._set(slot, SlotField.TAKEN_NS, time.monotonic_ns())
        # Last: from here on the image counts.
        self._set(slot, SlotField.COMPLETE, self._get(slot, SlotField.BEGUN))
        snapshot = self._read(slot)
        assert snapshot is not None
        return snapshot

    # --- both sides --------------------------------------------------------------------------

    def is_complete(self, slot: int) -> bool:
        """Whether a whole image is there."""
        complete = self._get(slot, SlotField.COMPLETE)
        return complete > 0 and complete == self._get(slot, SlotField.BEGUN)

    def newest_slot(self) -> int | None:
        """The slot of the newest complete image."""
        complete = [i for i in range(len(self.images)) if self.is_complete(i)]
        return max(complete, key=lambda i: self._get(i, SlotField.COMPLETE), default=None)

    def newest_place(self) -> tuple[int, float] | None:
        """Step and age in seconds of the newest complete image, without looking into it."""
        if (slot := self.newest_slot()) is None:
            return None
        age = (time.monotonic_ns() - self._get(slot, SlotField.TAKEN_NS)) / 1e9
        return self._get(slot, SlotField.STEP), max(0.0, age)

    def snapshots(self) -> list[Snapshot]:
        """The complete images, newest first."""
        found = [self._read(slot) for slot in range(len(self.images))]
        return sorted(filter(None, found), key=lambda s: s.generation, reverse=True)

    def forget(self) -> None:
        """Have nothing count as complete any more; only while no trainer runs."""
        for slot in range(len(self.images)):
            self._set(slot, SlotField.COMPLETE, 0)

    def close(self) -> None:
        """Give the memory back, when the other side has done so too."""
        for descriptor in self.descriptors:
            os.close(descriptor)

    def _read(self, slot: int) -> Snapshot | None:
        if not self.is_complete(slot):
            return None
        length = self._get(slot, SlotField.MANIFEST_BYTES)
        try:
            text = os.pread(self._manifests, length, slot * MAXIMUM_MANIFEST_BYTES)
            manifest = Manifest.draft_from_json(text)
        except (OSError, ValueError, OverflowError):
            return None  # scribbled over by a trainer that was failing: not to be trusted
        return Snapshot(
            slot=slot,
            generation=self._get(slot, SlotField.COMPLETE),
            descriptor=self.images[slot],
            image_bytes=self._get(slot, SlotField.IMAGE_BYTES),
            manifest=manifest,
            taken_ns=self._get(slot, SlotField.TAKEN_NS),
        )

    def _get(self, slot: int, field: SlotField) -> int:
        return self._table[Field.SLOT_TABLE + SLOT_VALUES * slot + field]

    def _set(self, slot: int, field: SlotField, value: int) -> None:
        self._table[Field.SLOT_TABLE + SLOT_VALUES * slot + field] = value
