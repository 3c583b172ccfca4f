"""The writes from the snapshot memory: when they begin."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from orchestrator.checkpoint.manifest import Reason
from orchestrator.ipc.control_page import ControlPage
from orchestrator.snapshot.slots import Snapshot
from orchestrator.supervisor.checkpoints.snapshot_writes import SnapshotWriteQueue
from orchestrator.system import threads
from tests.checkpoint.support import manifest_of, names, new_store


@pytest.mark.parametrize("reason", sorted({*Reason} - {Reason.IMPORTED}))
def test_only_what_can_wait_waits_for_the_deletion_of_older_ones(
    tmp_path: Path, reason: Reason
) -> None:
    """A rotation that is behind holds the next periodic write back, and never an emergency."""
    store = new_store(tmp_path)

    async def written_before_the_rotation_ends() -> bool:
        rotated = asyncio.Event()
        keeper = SnapshotWriteQueue(store, rotated.wait, lambda *facts: None, lambda *facts: None)
        snapshot = take(keeper)
        keeper.write(snapshot, reason)
        await keeper.settle([snapshot], asyncio.Event(), 0.3)
        before = bool(names(store))
        rotated.set()
        await keeper.settle([snapshot], asyncio.Event(), 10.0)
        return before

    can_wait = reason in (Reason.PERIODIC, Reason.REQUESTED)
    assert asyncio.run(written_before_the_rotation_ends()) is not can_wait
    assert names(store) == ["step-000000000007"]


@pytest.mark.parametrize("reason", [Reason.FINAL, Reason.EMERGENCY])
def test_the_last_chance_does_not_overtake_what_waits(tmp_path: Path, reason: Reason) -> None:
    """However long a rotation takes, the later of two states of one step becomes the newest."""
    store = new_store(tmp_path)

    async def write_both() -> None:
        never = asyncio.Event()
        keeper = SnapshotWriteQueue(store, never.wait, lambda *facts: None, lambda *facts: None)
        both = [take(keeper), take(keeper, slot=1)]
        keeper.write(both[0], Reason.PERIODIC)
        keeper.write(both[1], reason)
        await keeper.settle(both, asyncio.Event(), 10.0)

    asyncio.run(write_both())
    assert [c.manifest.reason for c in store.all()] == [Reason.PERIODIC, reason]


def test_a_write_that_cannot_begin_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system gives no more threads the trainer hears it, and may save again later."""
    problems: list[str] = []

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def write() -> None:
        rotated = asyncio.Event()
        rotated.set()
        keeper = SnapshotWriteQueue(
            new_store(tmp_path),
            rotated.wait,
            on_written=lambda *facts: None,
            on_failed=lambda snapshot, problem: problems.append(problem),
        )
        snapshot = take(keeper)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        monkeypatch.setattr(threads, "THREAD_WAIT_SECONDS", 0.0)
        keeper.write(snapshot, Reason.PERIODIC)
        await keeper.settle([snapshot], asyncio.Event(), 10.0)
        assert keeper.under_way == []

    asyncio.run(write())
    assert "grants no thread" in problems[0]


def take(keeper: SnapshotWriteQueue, slot: int = 0) -> Snapshot:
    """A snapshot of step 7, as a trainer would leave it."""
    page, descriptor = ControlPage.create()
    os.close(descriptor)
    keeper.attach(page)
    assert keeper.slots is not None
    keeper.slots.begin(slot)
    os.pwrite(keeper.slots.images[slot], b"image", 0)
    return keeper.slots.commit(slot, 5, manifest_of(7))
