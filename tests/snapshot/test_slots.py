"""Complete snapshots and torn ones, as the table on the control page tells them apart."""

import os
from dataclasses import replace

import pytest

from orchestrator.checkpoint.manifest import Manifest, Reason
from orchestrator.checkpoint.shards import MAXIMUM_INDEX_BYTES
from orchestrator.ipc.control_page import SLOT_VALUES, ControlPage, Field, SlotField
from orchestrator.snapshot.rank_snapshots import RankSnapshots
from orchestrator.snapshot.slots import Slots


def draft(step: int) -> Manifest:
    return Manifest("a run", step, 0, Reason.PERIODIC, {"loss": 0.5}, True, "now", {}, {})


def fill(slots: Slots, slot: int, step: int) -> None:
    slots.begin(slot)
    os.pwrite(slots.images[slot], b"image of step %d" % step, 0)
    slots.commit(slot, 15, draft(step))


def steps(slots: Slots) -> list[int]:
    return [snapshot.manifest.step for snapshot in slots.snapshots()]


def test_empty_slots_hold_no_snapshot(slots: Slots) -> None:
    """New slots have no complete image."""
    assert slots.snapshots() == []
    assert slots.newest_slot() is None
    assert RankSnapshots([slots]).newest_step_and_age() is None


def test_newest_snapshot_comes_first(slots: Slots) -> None:
    """Snapshots are in the order in which they were begun, whatever their slots."""
    fill(slots, 0, 5)
    fill(slots, 1, 6)
    assert steps(slots) == [6, 5]
    fill(slots, 0, 7)
    assert steps(slots) == [7, 6]
    assert slots.newest_slot() == 0
    newest = slots.snapshots()[0]
    assert (newest.slot, newest.generation, newest.image_bytes) == (0, 3, 15)
    assert os.pread(newest.descriptor, 15, 0) == b"image of step 7"
    assert newest.manifest == draft(7)


def test_death_at_any_instruction_leaves_the_newest_complete_snapshot(page: ControlPage) -> None:
    """Whichever store is the trainer's last, a torn slot does not count and the other does."""
    slots = Slots.create(page)
    fill(slots, 0, 5)
    fill(slots, 1, 6)
    before = page.values.tolist()
    slots.begin(0)
    slots.commit(0, 15, draft(7))
    after = page.values.tolist()
    # The stores in the order in which begin() and commit() make them.
    order = [SlotField.BEGUN, SlotField.FIRST_BATCH]
    order += [SlotField.IMAGE_BYTES, SlotField.MANIFEST_BYTES, SlotField.STEP, SlotField.EPOCH]
    order += [SlotField.TAKEN_NS, SlotField.COMPLETE]
    assert sorted(order) == sorted(SlotField)
    for done in range(1, len(order) + 1):
        for index, value in enumerate(before):
            page.values[index] = value
        for field in order[:done]:
            page.values[Field.SLOT_TABLE + field] = after[Field.SLOT_TABLE + field]
        assert steps(slots) == ([7, 6] if done == len(order) else [6])
    slots.close()


def test_slot_fields_are_stored_in_the_order_of_the_protocol() -> None:
    """BEGUN is stored before anything else, and COMPLETE after everything."""
    page, descriptor = ControlPage.create()
    os.close(descriptor)
    stored: list[int] = []

    class Recording:
        def __getitem__(self, index: int) -> int:
            return page.values[index]

        def __setitem__(self, index: int, value: int) -> None:
            stored.append(index - Field.SLOT_TABLE)
            page.values[index] = value

    slots = Slots.create(page)
    slots._table = Recording()  # type: ignore[assignment]
    fill(slots, 0, 1)
    assert stored[0] == SlotField.BEGUN
    assert stored[-1] == SlotField.COMPLETE
    assert sorted(stored) == sorted(SlotField)
    slots.close()


def test_snapshots_move_to_the_next_attempt(slots: Slots) -> None:
    """A new control page has the same snapshots, and generations go on counting."""
    fill(slots, 0, 5)
    slots.begin(1)
    page, descriptor = ControlPage.create()
    os.close(descriptor)
    slots.move_to(page)
    assert steps(slots) == [5]
    assert page.values[Field.SLOT_TABLE + SLOT_VALUES + SlotField.BEGUN] == 2
    assert slots.begin(1) == 3


def test_digest_of_the_first_batch_stays_with_its_snapshot(slots: Slots) -> None:
    """It is among the digests of its manifest; a new image in the slot begins without one."""

    def noted() -> list[str | None]:
        return [each.manifest.digests.get("first_batch") for each in slots.snapshots()]

    fill(slots, 0, 5)
    fill(slots, 1, 6)
    slots.note_first_batch(0, 2**63 - 1)
    assert noted() == [None, "7fffffffffffffff"]
    fill(slots, 0, 7)
    assert noted() == [None, None]


def test_forgotten_snapshots_do_not_count(slots: Slots) -> None:
    """After forget() nothing is complete, and later snapshots are newer than all before."""
    fill(slots, 0, 5)
    slots.forget()
    assert slots.snapshots() == []
    fill(slots, 1, 6)
    assert slots.snapshots()[0].generation == 2


def test_unreadable_manifest_is_not_trusted(slots: Slots) -> None:
    """A snapshot whose manifest cannot be read does not count."""
    fill(slots, 0, 5)
    os.pwrite(slots.descriptors[-1], b"\xff" * 20, 0)
    assert slots.snapshots() == []


def test_long_manifest_does_not_overlap_the_next(slots: Slots) -> None:
    """Thousands of metrics in one snapshot do not run into the other's."""
    many = {f"metric {number}": float(number) for number in range(20_000)}
    slots.begin(0)
    slots.commit(0, 1, replace(draft(1), metrics=many))
    fill(slots, 1, 2)
    assert slots.snapshots()[1].manifest.metrics == many


def test_index_of_sharded_tensors_is_kept_beside_the_image(page: ControlPage) -> None:
    """It belongs to its slot, moves to the next attempt's page, and is gone where there is none."""
    slots = Slots.create(page)
    for slot, text in enumerate((b"index of 5", b"")):
        slots.begin(slot)
        slots.commit(slot, 15, draft(5 + slot), text)
    other, descriptor = ControlPage.create()
    os.close(descriptor)
    slots.move_to(other)
    newest, older = slots.snapshots()
    assert newest.index is None
    assert older.index is not None
    assert older.index.read() == b"index of 5"
    slots.begin(0)
    slots.commit(0, 15, draft(7))
    assert slots.snapshots()[0].index is None
    with pytest.raises(OSError, match="too long"):
        slots.commit(1, 15, draft(8), bytes(MAXIMUM_INDEX_BYTES + 1))
    slots.close()
