"""What the supervisor does on the word of the trainer."""

import asyncio
from pathlib import Path

from orchestrator.checkpoint.manifest import Reason
from orchestrator.config import Config
from orchestrator.rundir.journal import Journal
from orchestrator.spare.pool import SparePool
from orchestrator.supervisor.checkpoints.catalog import CheckpointCatalog
from orchestrator.supervisor.checkpoints.snapshot_writes import SnapshotWriteQueue
from orchestrator.supervisor.message_handlers import Conversation
from orchestrator.supervisor.recovery.failure_budget import FailureBudget
from orchestrator.supervisor.state_machine import StateMachine
from orchestrator.supervisor.termination.announcements import Countdown
from orchestrator.supervisor.termination.hang_budgets import HangTimeouts
from orchestrator.supervisor.termination.stop_ladder import Watch
from orchestrator.system.stop_signals import EchoFilter
from tests.checkpoint.support import names, new_store, publish
from tests.supervisor.checkpoints.test_snapshot_writes import take


class _RotatesForEver(CheckpointCatalog):
    async def rotate(self) -> None:
        await asyncio.Event().wait()


def test_a_stop_does_not_wait_for_the_deletion_of_older_ones(tmp_path: Path) -> None:
    """The slot of a periodic write that waits for a rotation is free for the stop's own save."""
    store, machine, config = new_store(tmp_path), StateMachine(), Config.resolve({}, {}, tmp_path)
    journal = Journal(store.run.journal_file)

    async def play() -> None:
        watch = Watch(
            machine,
            config.grace,
            config.stop_signal,
            HangTimeouts("off"),
            lambda: 0.0,
            lambda: False,
            journal,
            EchoFilter(),
            Countdown(print),
        )
        custodian = _RotatesForEver(store, config.retention, journal, FailureBudget(3), [])
        keeper = SnapshotWriteQueue(
            store,
            lambda: conversation.rotations_end_or_stop(),
            on_written=lambda *facts: None,
            on_failed=lambda *facts: None,
        )
        spares = SparePool(["true"], False, watch.stop_wanted.is_set)
        conversation = Conversation(
            config, [], store, journal, machine, watch, custodian, keeper, spares, restarts=0
        )
        snapshot = take(keeper)
        conversation.written(snapshot, publish(store, 1), 0.1)
        keeper.write(snapshot, Reason.PERIODIC)
        await keeper.settle([snapshot], asyncio.Event(), 0.1)
        assert names(store) == ["step-000000000001"]
        watch.request_stop("SIGTERM")
        await keeper.settle([snapshot], asyncio.Event(), 10.0)
        assert names(store) == ["step-000000000001", "step-000000000007"]

    asyncio.run(play())
