"""The facts about one attempt."""

from pathlib import Path

from orchestrator.rundir.paths import RunDir
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.output import OutputTarget
from orchestrator.terminal.lossy_writer import LossyWriter
from tests.supervisor.support import new_queue, take_snapshot


def test_snapshot_to_resume_from_counts_before_it_is_restored(tmp_path: Path) -> None:
    """A trainer that is stopped during its imports has lost what only the snapshot held."""
    queue = new_queue(tmp_path)
    snapshot = take_snapshot(queue)
    attempt = Attempt(
        RunDir(tmp_path), 2, None, snapshot, queue, OutputTarget(LossyWriter(1), 1 << 20)
    )
    attempt.final_snapshot = queue.newest_beyond(None)
    assert attempt.step == 0
    assert attempt.last_step == snapshot.manifest.step
