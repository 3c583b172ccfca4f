"""What a session needs from its surroundings, whether a supervisor is there or not."""

from typing import Any, Protocol

from orchestrator.checkpoint.reading import Checkpoint
from orchestrator.checkpoint.store import Store
from orchestrator.config import Every
from orchestrator.exitcodes import ExitStatus
from orchestrator.journal import JournalEvent
from orchestrator.page import ControlPage
from orchestrator.rundir import RunDir


class Home(Protocol):
    """Implemented by ``supervised.Supervised`` and ``standalone.Standalone``."""

    supervised: bool
    run: RunDir
    page: ControlPage
    store: Store
    every: Every
    command: list[str]
    """What a person or scheduler started, to be told from other commands on the same run."""

    def checkpoint_to_resume(self) -> Checkpoint | None:
        """The newest valid checkpoint. Raises NoValidCheckpointError."""

    def tell(self, event: JournalEvent, **facts: Any) -> None:
        """Report something that belongs into the journal."""

    def show(self, metrics: dict[str, float]) -> None:
        """Report the latest metrics, for people who watch."""

    def published(self, checkpoint: Checkpoint, seconds: float | None) -> None:
        """Report a new checkpoint and how long it took to write; older ones may go now."""

    def leave(self, status: ExitStatus | None, error: dict[str, Any] | None) -> None:
        """The session ends with this status, or with None and the exception's description."""
