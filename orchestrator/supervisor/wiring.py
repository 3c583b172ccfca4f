"""The parts of a supervisor, each with those that it talks to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.adopt.seal_store import SealStore
from orchestrator.checkpoint.store import Store
from orchestrator.config import Config
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.spare.pool import SparePool
from orchestrator.supervisor.adoption import Adoption
from orchestrator.supervisor.checkpoints.catalog import CheckpointCatalog
from orchestrator.supervisor.checkpoints.snapshot_writes import SnapshotWriteQueue
from orchestrator.supervisor.message_handlers import Conversation
from orchestrator.supervisor.recovery.failure_budget import FailureBudget
from orchestrator.supervisor.state_machine import StateMachine
from orchestrator.supervisor.termination.announcements import Countdown
from orchestrator.supervisor.termination.hang_budgets import HangTimeouts
from orchestrator.supervisor.termination.stop_ladder import Watch
from orchestrator.system.stop_signals import EchoFilter


@dataclass(frozen=True)
class Parts:
    """What lives as long as the supervisor and knows nothing of it."""

    budget: FailureBudget
    checkpoints: CheckpointCatalog
    machine: StateMachine
    snapshots: SnapshotWriteQueue
    watch: Watch
    spares: SparePool
    conversation: Conversation
    adoption: Adoption | None


def assemble(
    config: Config,
    command: list[str],
    store: Store,
    journal: Journal,
    events: list[dict[str, Any]],
    show_below: Callable[[str], None],
) -> Parts:
    """Make them for a run; ``events`` are the journal's so far."""
    budget, machine = FailureBudget.from_journal(config.max_restarts, events), StateMachine()
    checkpoints = CheckpointCatalog(store, config.retention, journal, budget, events)
    snapshots = SnapshotWriteQueue(
        store,
        rotated=lambda: conversation.rotations_end_or_stop(),
        on_written=lambda *facts: conversation.written(*facts),
        on_failed=lambda *facts: conversation.write_failed(*facts),
    )
    watch = Watch(
        machine,
        config.grace,
        config.stop_signal,
        HangTimeouts(config.hang_timeout),
        lambda: snapshots.write_allowance_seconds,
        lambda: bool(snapshots.under_way),
        journal,
        EchoFilter(),
        Countdown(show_below),
    )
    spares = SparePool(command, config.spare, watch.stop_wanted.is_set)
    conversation = Conversation(
        config,
        command,
        store,
        journal,
        machine,
        watch,
        checkpoints,
        snapshots,
        spares,
        restarts=sum(e["event"] == JournalEvent.RESTART_SCHEDULED for e in events),
    )
    adoption = None
    if config.adopt is not None:
        adoption = Adoption(
            config.adopt,
            SealStore(store),
            checkpoints,
            watch,
            journal,
            lambda name: conversation.published(name, {}),
            conversation.alarm,
            is_new_run=not any(e["event"] == JournalEvent.ATTEMPT_STARTED for e in events),
        )
    return Parts(budget, checkpoints, machine, snapshots, watch, spares, conversation, adoption)
