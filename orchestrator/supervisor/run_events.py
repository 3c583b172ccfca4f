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

    def not_taken(self, generation: int, step: int, problem: str) -> None:
        """React to a save of several ranks for which one has taken no snapshot."""

    def replicas_differ(self, step: int, names: list[str]) -> None:
        """React to ranks that hold different values of what they should hold equally."""

    def save_failed(self, facts: dict[str, Any]) -> None:
        """React to a save that has failed; ``facts`` has its ``problem``."""
