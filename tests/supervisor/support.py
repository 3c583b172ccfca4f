"""What several tests of the supervisor's parts need."""

import asyncio
import os
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.checkpoint_journal import CheckpointJournal
from orchestrator.checkpoint.retention import RetentionPolicy
from orchestrator.checkpoint.store import Store
from orchestrator.ipc.control_page import ControlPage
from orchestrator.rundir.history_index import read_history
from orchestrator.rundir.journal import Journal
from orchestrator.snapshot.slots import Snapshot
from orchestrator.supervisor.checkpoints.catalog import CheckpointCatalog
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.supervisor.recovery.failure_budget import FailureBudget
from orchestrator.supervisor.stop_request import StopRequest
from tests.checkpoint.support import manifest_of, new_store

GRACE_SECONDS = 30.0


def catalog_of(store: Store) -> CheckpointCatalog:
    """The catalog of a supervisor that has just started."""
    journal = Journal(store.run.journal_file)
    return CheckpointCatalog(
        store,
        RetentionPolicy(keep=3),
        CheckpointJournal(journal),
        FailureBudget(3),
        read_history(store.run).published,
    )


class HeldRotationCatalog(CheckpointCatalog):
    """A catalog whose rotations take until ``release`` is set."""

    def __init__(self, store: Store) -> None:
        super().__init__(
            store,
            RetentionPolicy(keep=3),
            CheckpointJournal(Journal(store.run.journal_file)),
            FailureBudget(3),
            [],
        )
        self.release = asyncio.Event()

    async def rotate(self) -> None:
        await self.release.wait()


class RecordedEvents:
    """Implements RunEvents: remembers what it was told."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.problems: list[str] = []

    def snapshot_taken(self, facts: dict[str, Any]) -> None:
        pass

    def checkpoint_written(
        self, snapshot: Snapshot, checkpoint: Checkpoint, seconds: float
    ) -> None:
        self.written.append(checkpoint.name)

    def write_failed(self, snapshot: Snapshot, problem: str) -> None:
        self.problems.append(problem)

    def checkpoint_published(self, name: str, facts: dict[str, Any]) -> None:
        self.written.append(name)

    def not_taken(self, generation: int, step: int, problem: str) -> None:
        self.problems.append(problem)

    def replicas_differ(self, step: int, names: list[str]) -> None:
        self.problems += names

    def save_failed(self, facts: dict[str, Any]) -> None:
        self.problems.append(str(facts["problem"]))


def new_queue(root: Path, events: RecordedEvents | None = None) -> SnapshotWriteQueue:
    """A queue for a new run, without rotations and without a stop."""
    store = new_store(root)
    stop = StopRequest(GRACE_SECONDS)
    return SnapshotWriteQueue(store, catalog_of(store), stop, events or RecordedEvents())


def take_snapshot(queue: SnapshotWriteQueue, slot: int = 0) -> Snapshot:
    """Put a snapshot of step 7 into the queue's memory, as a trainer would."""
    page, descriptor = ControlPage.create()
    os.close(descriptor)
    queue.attach(page)
    slots = queue.slots[0]
    slots.begin(slot)
    os.pwrite(slots.images[slot], b"image", 0)
    return slots.commit(slot, 5, manifest_of(7))
