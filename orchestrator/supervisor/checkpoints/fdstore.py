"""The snapshot memory in the service manager's keeping: it outlives a supervisor that is killed.

A service manager kills the trainer with its supervisor, and there is nobody left who could save.
systemd keeps descriptors for a service over its restarts (FDSTORE): of the slots, which stay the
same over the attempts, and of the control page, which has their table and is each attempt's own.
"""

import os
from collections.abc import Mapping

import structlog

from orchestrator.checkpoint.manifest import Reason
from orchestrator.hosts.systemd.notify import Notifier
from orchestrator.ipc.control_page import PAGE_VERSION, ControlPage, Field
from orchestrator.snapshot.slots import SLOT_COUNT, Slots
from orchestrator.supervisor.checkpoints.catalog import CheckpointCatalog
from orchestrator.supervisor.checkpoints.snapshot_writes import SnapshotWriteQueue

PREFIX = "orchestrator-"
PAGE = f"{PREFIX}page-"
MEMORY = (*(f"{PREFIX}slot-{index}" for index in range(SLOT_COUNT)), f"{PREFIX}manifests")


class FdStore:
    """What one supervisor leaves to the next by way of the service manager."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._page: str | None = None

    def leave(self, attempt: int, page: int, *memory: int) -> None:
        """Have the manager keep the memory of an attempt that is about to start."""
        for name, descriptor in zip(MEMORY, memory, strict=True):
            self._notifier.store(name, descriptor)
        former, self._page = self._page, f"{PAGE}{attempt}"
        self._notifier.store(self._page, page)
        if former is not None:
            self._notifier.forget(former)

    async def accept(
        self, run_id: str, checkpoints: CheckpointCatalog, snapshots: SnapshotWriteQueue
    ) -> None:
        """Save what a killed supervisor of this run has left, if no checkpoint is as new.

        A trainer that could still write there can no longer be: we hold the lock that it had.
        """
        slots = self.find(run_id)
        if slots is None:
            return
        await checkpoints.choose(None)
        snapshots.inherit(slots)
        if left := snapshots.newest_left(beyond=checkpoints.newest):
            structlog.get_logger().info(
                "a killed supervisor has left a snapshot in memory", step=left.manifest.step
            )
            snapshots.write(left, Reason.CRASH)

    def find(self, run_id: str) -> Slots | None:
        """The memory that was left, if all of it is there and of this run."""
        stored = {k: v for k, v in self._notifier.stored.items() if k.startswith(PREFIX)}
        self._page = max(filter(_is_page, stored), key=_attempt_of, default=None)
        slots = None if self._page is None else _slots(stored, self._page, run_id)
        used = set() if slots is None else {self._page, *MEMORY}
        for name in stored.keys() - used:
            self._notifier.forget(name)
            os.close(stored[name])
        if slots is None:
            self._page = None
        return slots


def _is_page(name: str) -> bool:
    return name.startswith(PAGE) and name.removeprefix(PAGE).isdecimal()


def _attempt_of(page: str) -> int:
    return int(page.removeprefix(PAGE))


def _slots(stored: Mapping[str, int], page: str, run_id: str) -> Slots | None:
    """The slots, if all of it is there and as it was left."""
    if not stored.keys() >= set(MEMORY):
        return None
    try:
        table = ControlPage(stored[page])
        sizes = [os.fstat(stored[name]).st_size for name in MEMORY]
    except (OSError, ValueError):
        return None
    if table.values[Field.VERSION] != PAGE_VERSION:
        return None
    slots = Slots(table, [stored[name] for name in MEMORY])
    whole = all(
        snapshot.manifest.run_id == run_id and snapshot.image_bytes <= sizes[snapshot.slot]
        for snapshot in slots.snapshots()
    )
    return slots if whole else None
