"""Keeps snapshot memory in systemd's file descriptor store, so that it survives the supervisor.

A service manager kills the trainer together with its supervisor, and no process is left that could
save. systemd keeps descriptors for a service over its restarts (FDSTORE): those of the slots, which
all attempts share, and that of the control page, which holds the slots' table and is each attempt's
own.
"""

import os
from collections.abc import Mapping

import structlog

from orchestrator.checkpoint.manifest import Reason
from orchestrator.hosts.systemd.notify_socket import Notifier
from orchestrator.ipc.control_page import PAGE_VERSION, ControlPage, Field
from orchestrator.snapshot.slots import SLOT_COUNT, Slots
from orchestrator.supervisor.checkpoints.catalog import CheckpointCatalog
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue

PREFIX = "orchestrator-"
PAGE = f"{PREFIX}page-"
MEMORY = (*(f"{PREFIX}slot-{index}" for index in range(SLOT_COUNT)), f"{PREFIX}manifests")


class FdStore:
    """The descriptors that one supervisor hands to the next through the service manager."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._page: str | None = None

    def store(self, attempt: int, page: int, *memory: int) -> None:
        """Store the memory of an attempt that is about to start."""
        for name, descriptor in zip(MEMORY, memory, strict=True):
            self._notifier.store(name, descriptor)
        former, self._page = self._page, f"{PAGE}{attempt}"
        self._notifier.store(self._page, page)
        if former is not None:
            self._notifier.forget(former)

    async def recover(
        self, run_id: str, catalog: CheckpointCatalog, snapshots: SnapshotWriteQueue
    ) -> None:
        """Save the newest snapshot of a killed supervisor, unless a checkpoint is as new.

        No trainer can write to that memory any more: it held the run lock, which is this
        supervisor's now.
        """
        slots = self.find(run_id)
        if slots is None:
            return
        await catalog.choose(None)
        snapshots.take_over(slots)
        if newest := snapshots.newest_beyond(catalog.newest):
            structlog.get_logger().info(
                "a killed supervisor has left a snapshot in memory", step=newest.manifest.step
            )
            snapshots.write(newest, Reason.CRASH)
        if snapshots.world_size > 1:
            # It is of one rank. On disk it can be resumed from by one, and is refused by others.
            await snapshots.drop_taken_over()

    def find(self, run_id: str) -> Slots | None:
        """Return the stored slots of this run, if they are complete; give the rest back."""
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
    """Return the slots, if all of their memory is there and undamaged."""
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
