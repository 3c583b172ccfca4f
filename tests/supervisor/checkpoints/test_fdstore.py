"""Snapshot memory that a service manager hands from one supervisor to the next."""

import os
from collections.abc import Callable

import pytest

from orchestrator.hosts.systemd.notify import Notifier
from orchestrator.ipc.control_page import ControlPage, Field
from orchestrator.snapshot.slots import Slots
from orchestrator.supervisor.checkpoints.fdstore import MEMORY, PAGE, FdStore
from tests.checkpoint.support import RUN_ID, manifest_of


class Keeper(Notifier):
    """A manager's store of descriptors, without a manager: it dups as sending them does."""

    def __init__(self) -> None:
        super().__init__(None)
        self.stored: dict[str, int] = {}

    def store(self, name: str, descriptor: int) -> None:
        if name not in self.stored:
            self.stored[name] = os.dup(descriptor)

    def forget(self, name: str) -> None:
        self.stored.pop(name, None)


@pytest.fixture
def left() -> Keeper:
    """What a supervisor has left whose second attempt had the snapshots of steps 5 and 6."""
    keeper = Keeper()
    heritage = FdStore(keeper)
    page, descriptor = ControlPage.create()
    slots = Slots.create(page)
    heritage.leave(1, descriptor, *slots.descriptors)
    page, descriptor = ControlPage.create()
    slots.move_to(page)
    heritage.leave(2, descriptor, *slots.descriptors)
    for slot, step in enumerate((5, 6)):
        slots.begin(slot)
        os.ftruncate(slots.images[slot], 4096)
        slots.commit(slot, 4096, manifest_of(step))
    return keeper


def test_next_supervisor_finds_the_snapshots(left: Keeper) -> None:
    """The page of the last attempt alone is kept, and its table tells what is whole."""
    assert set(left.stored) == {f"{PAGE}2", *MEMORY}
    slots = FdStore(left).find(RUN_ID)
    assert slots is not None
    assert [s.manifest.step for s in slots.snapshots()] == [6, 5]
    assert set(left.stored) == {f"{PAGE}2", *MEMORY}


def test_torn_snapshot_does_not_count(left: Keeper) -> None:
    """The slot that was being filled when all was killed is passed over."""
    page = ControlPage(left.stored[f"{PAGE}2"])
    Slots(page, [left.stored[name] for name in MEMORY]).begin(0)
    slots = FdStore(left).find(RUN_ID)
    assert slots is not None
    assert [s.manifest.step for s in slots.snapshots()] == [6]


def spoil_run(left: Keeper) -> str:
    return "another run"


def spoil_version(left: Keeper) -> str:
    ControlPage(left.stored[f"{PAGE}2"]).values[Field.VERSION] += 1
    return RUN_ID


def spoil_size(left: Keeper) -> str:
    os.ftruncate(left.stored[MEMORY[1]], 100)
    return RUN_ID


def spoil_page(left: Keeper) -> str:
    os.ftruncate(left.stored[f"{PAGE}2"], 100)
    return RUN_ID


def spoil_set(left: Keeper) -> str:
    del left.stored[MEMORY[2]]
    return RUN_ID


@pytest.mark.parametrize("spoil", [spoil_run, spoil_version, spoil_size, spoil_page, spoil_set])
def test_what_cannot_be_trusted_is_given_back(left: Keeper, spoil: Callable[[Keeper], str]) -> None:
    """Another run's, another version's, cut short, incomplete: nothing of it is used or kept."""
    run_id = spoil(left)
    assert FdStore(left).find(run_id) is None
    assert left.stored == {}


def test_nothing_left() -> None:
    """The first start of a service finds nothing."""
    assert FdStore(Keeper()).find(RUN_ID) is None
