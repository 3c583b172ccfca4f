"""The backend of a session: supervised or standalone; what it knows, and what it does."""

from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.store import Store
from orchestrator.config import Every
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import ControlPage
from orchestrator.rundir.failure_times import FailureRate
from orchestrator.rundir.paths import RunDir
from orchestrator.snapshot.slots import Slots, Snapshot
from orchestrator.training.runtime.rank_link import RankLink, World


@dataclass(frozen=True)
class RunSettings:
    """What was asked for when the run was started.

    Attributes:
        command: What a person or a scheduler started, to be told from other commands on the run.
        every: How often a checkpoint is written.
        snapshot_budget: The share of the time that snapshots may take; None: no snapshots.
        allow_data_change: Whether an epoch may go on with another loader than it had.
        snapshot_cost_seconds: What a snapshot has cost an earlier attempt, if that is known.
        failures: How often the run fails, where snapshots are to follow from that.
    """

    command: list[str]
    every: Every
    snapshot_budget: float | None
    allow_data_change: bool
    snapshot_cost_seconds: float | None = None
    failures: FailureRate | None = None


@dataclass(frozen=True)
class SharedMemory:
    """The memory that a trainer shares with its supervisor; its own where there is none.

    Attributes:
        page: The control page.
        slots: The snapshot memory.
        writes_under_way: Snapshots of the previous attempt that the supervisor is still writing.
    """

    page: ControlPage
    slots: Slots
    writes_under_way: tuple[tuple[Snapshot, Future[Checkpoint]], ...] = ()


@dataclass(frozen=True)
class TrainerFacts:
    """What a trainer knows of its run from the moment it joins it; it does not change any more.

    Attributes:
        run_dir: The run's directory.
        store: Its checkpoints.
        memory: The control page and the snapshot slots.
        settings: What was asked for.
        attempt: The number of this attempt; None without a supervisor, which counts them.
        rank_link: What this process shares with other ranks; None where there are none.
    """

    run_dir: RunDir
    store: Store
    memory: SharedMemory
    settings: RunSettings
    attempt: int | None = None
    rank_link: RankLink | None = None

    @property
    def world(self) -> World:
        """Which rank this process is, and of how many."""
        return World() if self.rank_link is None else self.rank_link.world

    @property
    def supervised(self) -> bool:
        """Whether a supervisor is there."""
        return self.attempt is not None


class Report(StrEnum):
    """What a trainer reports; the values are the message types of the protocol."""

    RESUMED = "resumed"
    RESUME_FAILED = "rejected"
    """The state that was to be resumed from cannot be loaded."""
    EXACTNESS_LOST = "exactness_lost"
    SNAPSHOT_TAKEN = "snapshot"
    SAVE_FAILED = "save_failed"
    """This process could not write a checkpoint."""
    STOP_NOTICED = "stop_noticed"
    REFUSED = "refused"
    """The session cannot continue; only a supervisor needs the reason, which has been printed."""


class RunBackend(Protocol):
    """What a session needs of its run; ``Supervised`` and ``Standalone`` implement it."""

    @property
    def facts(self) -> TrainerFacts:
        """What is known of the run."""

    def newest_state(self) -> Snapshot | Checkpoint | None:
        """Return the newest state to resume from: in memory, on disk, or None in a new run.

        Raises:
            NoValidCheckpointError: There are checkpoints, and none of them is valid.
        """

    def write(self, snapshot: Snapshot, reason: Reason, written: Future[Checkpoint]) -> None:
        """Begin to write a snapshot to disk; ``written`` gets the checkpoint.

        It gets a CheckpointWriteError where that fails.
        """

    def record_publish(self, checkpoint: Checkpoint, seconds: float) -> None:
        """Report a checkpoint that this process has written in ``seconds``; rotate older ones."""

    def report(self, report: Report, **facts: Any) -> None:
        """Report an event to the supervisor, or to the journal where there is none."""

    def report_metrics(self, metrics: dict[str, float]) -> None:
        """Show the latest metrics; called about once a second."""

    def leave(self, status: ExitStatus | None, error: dict[str, Any] | None) -> None:
        """End the session with a status, or with None and the exception's description."""
