"""What is known of one life of the trainer."""

from pathlib import Path

from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.checkpoints.snapshot_writes import SnapshotWriteQueue
from orchestrator.terminal.lossy_writer import LossyWriter
from tests.checkpoint.support import new_store
from tests.supervisor.checkpoints.test_snapshot_writes import take


async def _at_once() -> None:
    """No rotation is under way."""


def test_what_was_handed_on_counts_before_it_is_restored(tmp_path: Path) -> None:
    """A trainer that is stopped during its imports has lost what only memory held."""
    store = new_store(tmp_path)
    keeper = SnapshotWriteQueue(store, _at_once, lambda *facts: None, lambda *facts: None)
    handed = take(keeper)
    attempt = Attempt(store.run, 2, None, handed, keeper, LossyWriter(1))
    attempt.left = keeper.newest_left(beyond=None)
    assert attempt.step == 0
    assert attempt.last_step == handed.manifest.step
