"""The events of saving that other parts of the supervisor wait for."""

from typing import Any, Protocol

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.snapshot.slots import Snapshot


class RunEvents(Protocol):
    """Listens to what becomes of saves; the methods are called on the event loop's thread."""

    def snapshot_taken(self, facts: dict[str, Any]) -> None:
        """Handle that the trainer has taken a snapshot; ``facts`` are those of its message."""

    def checkpoint_written(
        self, snapshot: Snapshot, checkpoint: Checkpoint, seconds: float
    ) -> None:
        """Handle that the supervisor has written a snapshot to disk as a checkpoint."""

    def write_failed(self, snapshot: Snapshot, problem: str) -> None:
        """Handle that the supervisor could not write a snapshot."""

    def checkpoint_published(self, name: str, facts: dict[str, Any]) -> None:
        """Handle that a checkpoint of this name is published, by the trainer or by its script."""

    def save_failed(self, facts: dict[str, Any]) -> None:
        """Handle that a save has failed; ``facts`` has its ``problem``."""
