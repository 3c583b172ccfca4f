"""The writes from the snapshot memory: when they begin."""

import asyncio
import threading
from pathlib import Path

import pytest

from orchestrator.checkpoint.manifest import Reason
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.supervisor.stop_request import StopRequest
from orchestrator.system import threads
from tests.checkpoint.support import names, new_store
from tests.supervisor.support import (
    GRACE_SECONDS,
    HeldRotationCatalog,
    RecordedEvents,
    new_queue,
    take_snapshot,
)


@pytest.mark.parametrize("reason", sorted({*Reason} - {Reason.IMPORTED}))
def test_only_a_write_that_can_wait_waits_for_a_rotation(tmp_path: Path, reason: Reason) -> None:
    """A rotation that is behind holds the next periodic write back, and never an emergency."""
    store = new_store(tmp_path)

    async def written_before_the_rotation_ends() -> bool:
        catalog = HeldRotationCatalog(store)
        catalog.begin_rotation()
        queue = SnapshotWriteQueue(store, catalog, StopRequest(GRACE_SECONDS), RecordedEvents())
        snapshot = take_snapshot(queue)
        queue.write(snapshot, reason)
        await queue.wait_for([snapshot], asyncio.Event(), 0.3)
        before = bool(names(store))
        catalog.release.set()
        await queue.wait_for([snapshot], asyncio.Event(), 10.0)
        return before

    can_wait = reason in (Reason.PERIODIC, Reason.REQUESTED)
    assert asyncio.run(written_before_the_rotation_ends()) is not can_wait
    assert names(store) == ["step-000000000007"]


def test_waiting_write_begins_when_a_stop_is_wanted(tmp_path: Path) -> None:
    """A periodic write that waits for a rotation frees its slot for the stop's own save."""
    store, stop = new_store(tmp_path), StopRequest(GRACE_SECONDS)

    async def write() -> None:
        catalog = HeldRotationCatalog(store)
        catalog.begin_rotation()
        queue = SnapshotWriteQueue(store, catalog, stop, RecordedEvents())
        snapshot = take_snapshot(queue)
        queue.write(snapshot, Reason.PERIODIC)
        await queue.wait_for([snapshot], asyncio.Event(), 0.1)
        assert names(store) == []
        stop.record("SIGTERM")
        await queue.wait_for([snapshot], asyncio.Event(), 10.0)
        assert names(store) == ["step-000000000007"]

    asyncio.run(write())


@pytest.mark.parametrize("reason", [Reason.FINAL, Reason.EMERGENCY])
def test_last_save_does_not_overtake_a_waiting_write(tmp_path: Path, reason: Reason) -> None:
    """However long a rotation takes, the later of two states of one step becomes the newest."""
    store = new_store(tmp_path)

    async def write_both() -> None:
        catalog = HeldRotationCatalog(store)
        catalog.begin_rotation()
        queue = SnapshotWriteQueue(store, catalog, StopRequest(GRACE_SECONDS), RecordedEvents())
        both = [take_snapshot(queue), take_snapshot(queue, slot=1)]
        queue.write(both[0], Reason.PERIODIC)
        queue.write(both[1], reason)
        await queue.wait_for(both, asyncio.Event(), 10.0)

    asyncio.run(write_both())
    assert [c.manifest.reason for c in store.all()] == [Reason.PERIODIC, reason]


def test_write_that_cannot_begin_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system gives no more threads the trainer is told, and may save again later."""
    events = RecordedEvents()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def write() -> None:
        queue = new_queue(tmp_path, events)
        snapshot = take_snapshot(queue)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        monkeypatch.setattr(threads, "THREAD_WAIT_SECONDS", 0.0)
        queue.write(snapshot, Reason.PERIODIC)
        await queue.wait_for([snapshot], asyncio.Event(), 10.0)
        assert queue.pending == []

    asyncio.run(write())
    assert "starts no more threads" in events.problems[0]
