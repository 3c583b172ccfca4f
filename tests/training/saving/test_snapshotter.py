"""Which slot a snapshot is put into, and what happens where memory is short."""

import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.ipc.control_page import ControlPage
from orchestrator.snapshot.slots import Slots, Snapshot
from orchestrator.training import Session
from orchestrator.training.saving.slot_memory import INLINE_BYTES, with_spare
from orchestrator.training.saving.snapshotter import LEFT_FREE_BYTES, SnapshotContent, Snapshotter
from tests.support import DEADLINE_SECONDS, wait_until
from tests.training.support import draft_of, result_of

SMALL = {"tensor": torch.arange(1000.0)}
PLENTY = 1 << 40


@pytest.fixture
def slots() -> Iterator[Slots]:
    page, _ = ControlPage.create()
    slots = Slots.create(page)
    yield slots
    slots.close()


def snapshotter(slots: Slots, available_bytes: int = PLENTY) -> Snapshotter:
    return Snapshotter(slots, lambda: available_bytes)


def take(taker: Snapshotter, step: int, state: dict[str, Any] = SMALL) -> Snapshot | None:
    taking = taker.take(SnapshotContent({"step": step, **state}, draft_of(step), []))
    return None if taking is None else result_of(taking)


def steps(slots: Slots) -> list[int]:
    return [snapshot.manifest.step for snapshot in slots.snapshots()]


def test_newest_snapshot_is_never_overwritten(slots: Slots) -> None:
    """Snapshots alternate between the slots, so that one is complete at every moment."""
    taker = snapshotter(slots)
    for step in range(1, 6):
        take(taker, step)
        assert steps(slots) == ([step, step - 1] if step > 1 else [1])
    taker.close()


def test_slot_that_is_being_written_is_left_alone(slots: Slots) -> None:
    """While one slot is written to disk and the other is the newest, there is none to take."""
    taker = snapshotter(slots)
    first = take(taker, 1)
    assert first is not None
    written: Future[None] = Future()
    taker.hold(first.slot, written)
    assert take(taker, 2) is not None
    assert not taker.is_ready
    assert take(taker, 3) is None
    assert steps(slots) == [2, 1]
    written.set_result(None)
    assert take(taker, 3) is not None
    assert steps(slots) == [3, 2]
    taker.close()


def test_wait_for_a_slot_ends_at_the_deadline(slots: Slots) -> None:
    """With a deadline a snapshot waits for a slot, and not for ever."""
    taker = snapshotter(slots)
    first = take(taker, 1)
    take(taker, 2)
    assert first is not None
    taker.hold(first.slot, Future())
    content = SnapshotContent({"step": 3, **SMALL}, draft_of(3), [])
    assert taker.take(content, time.monotonic() + 0.05) is None
    taker.close()


def test_short_memory_leaves_one_slot(slots: Slots) -> None:
    """With room for one image there is one slot, which is said once with the figures."""
    needed = with_spare(4000)
    taker = snapshotter(slots, available_bytes=LEFT_FREE_BYTES + 2 * needed - 1)
    with pytest.warns(UserWarning, match=r"two snapshots .* GiB may be used: one is kept"):
        first = take(taker, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = take(taker, 2)
    assert first is not None
    assert second is not None
    assert first.slot == second.slot == 0
    assert steps(slots) == [2]
    taker.hold(0, Future())
    assert take(taker, 3) is None
    taker.close()


def test_missing_memory_leaves_no_snapshots(slots: Slots) -> None:
    """Without room for one image there are no snapshots, which is said with the figures."""
    taker = snapshotter(slots, available_bytes=1000)
    with pytest.warns(UserWarning, match="none are taken"):
        assert take(taker, 1) is None
    assert not taker.has_room
    assert steps(slots) == []
    taker.close()


def test_large_memory_is_populated_in_the_background(slots: Slots) -> None:
    """A large first snapshot is not taken until its memory is there; the loop does not wait."""
    state = {"tensor": torch.zeros(INLINE_BYTES // 4 + 1)}
    taker = snapshotter(slots)
    assert take(taker, 1, state) is None
    wait_until(lambda: taker.is_ready, "populated memory")
    assert take(taker, 2, state) is not None
    taker.close()


def test_snapshot_with_a_deadline_waits_for_memory(slots: Slots) -> None:
    """A stop waits for the memory rather than go without."""
    state = {"step": 1, "tensor": torch.zeros(INLINE_BYTES // 4 + 1)}
    taker = snapshotter(slots)
    taking = taker.take(
        SnapshotContent(state, draft_of(1), []), time.monotonic() + DEADLINE_SECONDS
    )
    assert taking is not None
    result_of(taking)
    taker.close()


def test_memory_of_the_previous_attempt_is_not_counted_again(slots: Slots) -> None:
    """A trainer that inherits filled slots needs no more memory for the same state."""
    first = snapshotter(slots)
    take(first, 1)
    take(first, 2)
    first.close()
    again = snapshotter(slots, available_bytes=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert take(again, 3) is not None
    again.close()


def test_session_without_memory_saves_while_the_loop_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no room for a snapshot, checkpoints are saved all the same."""
    monkeypatch.setattr("orchestrator.system.memory.psutil.virtual_memory", lambda: _NoMemory)
    saved = []

    def train() -> None:
        with Session(run_dir=tmp_path, model=torch.nn.Linear(2, 2)) as session:
            for _ in session.steps(3):
                session.step()
                path = session.checkpoint()
                assert path is not None
                saved.append(torch.load(path / "state.pt")["step"])

    with pytest.warns(UserWarning, match="none are taken"):
        train()
    assert saved == [1, 2, 3]
    assert (tmp_path / "done.json").exists()


class _NoMemory:
    available = 0
