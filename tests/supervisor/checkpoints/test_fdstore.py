"""Snapshot memory in the file descriptor store of a service manager."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.hosts.systemd.notify_socket import Notifier
from orchestrator.ipc.control_page import ControlPage, Field, anonymous_file
from orchestrator.snapshot.slots import Slots
from orchestrator.supervisor.checkpoints.fdstore import MEMORY, PAGE, FdStore
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.supervisor.stop_request import StopRequest
from tests.checkpoint.support import RUN_ID, manifest_of, new_store
from tests.supervisor.support import RecordedEvents, catalog_of


class ServiceManager(Notifier):
    """A store of descriptors without a service manager: it duplicates them, as sending does."""

    def __init__(self) -> None:
        super().__init__(None)
        self.stored: dict[str, int] = {}

    def store(self, name: str, descriptor: int) -> None:
        if name not in self.stored:
            self.stored[name] = os.dup(descriptor)

    def forget(self, name: str) -> None:
        self.stored.pop(name, None)


@pytest.fixture
def left() -> ServiceManager:
    """The store after a supervisor whose second attempt had the snapshots of steps 5 and 6."""
    manager = ServiceManager()
    fdstore = FdStore(manager)
    page, descriptor = ControlPage.create()
    slots = Slots.create(page)
    fdstore.store(1, descriptor, *slots.descriptors)
    page, descriptor = ControlPage.create()
    slots.move_to(page)
    fdstore.store(2, descriptor, *slots.descriptors)
    for slot, step in enumerate((5, 6)):
        slots.begin(slot)
        os.ftruncate(slots.images[slot], 4096)
        slots.commit(slot, 4096, manifest_of(step))
    return manager


def test_next_supervisor_finds_the_snapshots(left: ServiceManager) -> None:
    """Only the page of the last attempt is kept; its table tells which snapshots are complete."""
    assert set(left.stored) == {f"{PAGE}2", *MEMORY}
    slots = FdStore(left).find(RUN_ID)
    assert slots is not None
    assert [s.manifest.step for s in slots.snapshots()] == [6, 5]
    assert set(left.stored) == {f"{PAGE}2", *MEMORY}


def test_torn_snapshot_does_not_count(left: ServiceManager) -> None:
    """The slot that was being filled at the kill is passed over."""
    page = ControlPage(left.stored[f"{PAGE}2"])
    Slots(page, [left.stored[name] for name in MEMORY]).begin(0)
    slots = FdStore(left).find(RUN_ID)
    assert slots is not None
    assert [s.manifest.step for s in slots.snapshots()] == [6]


def spoil_run(left: ServiceManager) -> str:
    return "another run"


def spoil_version(left: ServiceManager) -> str:
    ControlPage(left.stored[f"{PAGE}2"]).values[Field.VERSION] += 1
    return RUN_ID


def spoil_size(left: ServiceManager) -> str:
    os.ftruncate(left.stored[MEMORY[1]], 100)
    return RUN_ID


def spoil_page(left: ServiceManager) -> str:
    # The page itself is sealed against that.
    short = anonymous_file("short")
    os.ftruncate(short, 100)
    os.dup2(short, left.stored[f"{PAGE}2"], inheritable=False)
    os.close(short)
    return RUN_ID


def spoil_set(left: ServiceManager) -> str:
    del left.stored[MEMORY[2]]
    return RUN_ID


@pytest.mark.parametrize("spoil", [spoil_run, spoil_version, spoil_size, spoil_page, spoil_set])
def test_memory_that_cannot_be_trusted_is_given_back(
    left: ServiceManager, spoil: Callable[[ServiceManager], str]
) -> None:
    """Memory of another run or version, cut short or incomplete, is neither used nor kept."""
    run_id = spoil(left)
    assert FdStore(left).find(run_id) is None
    assert left.stored == {}


def test_first_start_finds_no_memory() -> None:
    """The first start of a service finds nothing."""
    assert FdStore(ServiceManager()).find(RUN_ID) is None


@pytest.mark.parametrize(("ranks", "offered"), [(1, [6, 5]), (2, [])])
def test_recovered_snapshot_is_written_and_offered_to_one_rank_only(
    left: ServiceManager, tmp_path: Path, ranks: int, offered: list[int]
) -> None:
    """Several ranks cannot resume from a snapshot of one; on disk it is not lost."""
    store = new_store(tmp_path)
    catalog = catalog_of(store)
    queue = SnapshotWriteQueue(store, catalog, StopRequest(1.0), RecordedEvents(), ranks)

    async def recover() -> None:
        await FdStore(left).recover(RUN_ID, catalog, queue)
        await queue.wait_for(queue.pending, asyncio.Event())

    asyncio.run(recover())
    assert [checkpoint.manifest.step for checkpoint in store.all()] == [6]
    memory = queue.memory
    assert [s.manifest.step for s in memory.snapshots()] == offered if memory else not offered
