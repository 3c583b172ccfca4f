"""The interface of the part that reacts to snapshots and checkpoints."""

from typing import Any, Protocol

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.snapshot.slots import Snapshot


class RunEvents(Protocol):
    """Listens to saves; the methods are called on the event loop's thread."""

    def snapshot_taken(self, facts: dict[str, Any]) -> None:
        """React to a snapshot that the trainer has taken; ``facts`` are those of its message."""

    def checkpoint_written(
        self, snapshot: Snapshot, checkpoint: Checkpoint, seconds: float
    ) -> None:
        """React to a snapshot that the supervisor has written to disk as a checkpoint."""

    def write_failed(self, snapshot: Snapshot, problem: str) -> None:
        """React to a snapshot that the supervisor could not write."""

    def checkpoint_published(self, name: str, facts: dict[str, Any]) -> None:
        """React to a new checkpoint of this name, in whatever way it was made."""

    def save_failed(self, facts: dict[str, Any]) -> None:
        """React to a save that has failed; ``facts`` has its ``problem``."""
