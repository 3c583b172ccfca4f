"""What a session needs from its surroundings, whether a supervisor is there or not."""

from concurrent.futures import Future
from typing import Any, Protocol

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.store import Store
from orchestrator.config import Every
from orchestrator.errors import CheckpointWriteError
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import ControlPage
from orchestrator.rundir.journal import JournalEvent
from orchestrator.rundir.paths import RunDir
from orchestrator.snapshot.slots import Slots, Snapshot


class RunBackend(Protocol):
    """Implemented by ``supervised.Supervised`` and ``standalone.Standalone``."""

    supervised: bool
    run: RunDir
    page: ControlPage
    store: Store
    slots: Slots
    every: Every
    snapshot_budget: float | None
    snapshot_interval: float | None
    """In seconds, as an earlier attempt has learned it."""
    allow_data_change: bool
    command: list[str]
    """What a person or scheduler started, to be told from other commands on the same run."""

    @property
    def attempt(self) -> int | None:
        """Which life of the trainer this is; None where nobody counts them."""

    def snapshot_to_resume(self) -> Snapshot | None:
        """The image in memory that the attempt before left, if it is further than the disk."""

    def checkpoint_to_resume(self) -> Checkpoint | None:
        """The newest valid checkpoint. Raises NoValidCheckpointError."""

    def reject(self) -> None:
        """Report that what should be resumed from cannot be loaded."""

    def writes_under_way(self) -> list[tuple[Snapshot, Future[Checkpoint]]]:
        """Snapshots of the attempt before that are still being written."""

    def write(self, snapshot: Snapshot, reason: Reason) -> Future[Checkpoint]:
        """Have a snapshot become a checkpoint; the future may fail with CheckpointWriteError."""

    def tell(self, event: JournalEvent, **facts: Any) -> None:
        """Report something that belongs into the journal."""

    def show(self, metrics: dict[str, float]) -> None:
        """Report the latest metrics, for people who watch."""

    def took(self, snapshot: Snapshot, **facts: Any) -> None:
        """Report a snapshot and what it cost."""

    def published(self, checkpoint: Checkpoint, seconds: float | None) -> None:
        """Report a checkpoint that we wrote ourselves; older ones may go now."""

    def failed(self, error: CheckpointWriteError) -> None:
        """Report that a checkpoint could not be written by ourselves."""

    def leave(self, status: ExitStatus | None, error: dict[str, Any] | None) -> None:
        """The session ends with this status, or with None and the exception's description."""
