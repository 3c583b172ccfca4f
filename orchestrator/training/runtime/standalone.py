"""A session without a supervisor: it locks, journals, verifies and rotates by itself."""

import os
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.checkpoint_journal import CheckpointJournal
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.store import Store
from orchestrator.config import Config
from orchestrator.errors import (
    CheckpointInvalidError,
    CheckpointWriteError,
    ConfigError,
    UnreadableError,
)
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import ControlPage, Field
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.lock import RunLock
from orchestrator.rundir.ownership import others_who_may_write
from orchestrator.rundir.paths import RunDir, default_run_dir
from orchestrator.snapshot.slots import Slots, Snapshot
from orchestrator.system.recorded_command import recorded
from orchestrator.telemetry.trackers import MlflowWatch, TrackerVariables
from orchestrator.training.exits import say
from orchestrator.training.runtime.local_writer import OwnWriter

_trained: set[Path] = set()
"""The runs that this process trains, or has trained to their end."""


class Standalone:
    """Home of a session in a process of its own."""

    supervised = False
    attempt = None

    def __init__(self, run_dir: Path | None) -> None:
        """Open and lock the run. Raises ConfigError, RunInUseError."""
        config = Config.resolve({}, os.environ, Path.cwd())
        self._policy = config.retention
        self.every = config.every
        self.snapshot_budget = config.snapshot_budget
        self.snapshot_interval: float | None = None
        self.allow_data_change = config.allow_data_change
        self.command = sys.argv
        self.run = RunDir(run_dir or config.run_dir or default_run_dir(sys.argv[0]))
        self._path = self.run.root.resolve()  # the script may change its directory
        self._refuse_second_training()
        self.run.create()
        self._lock = RunLock(self.run)
        self._left = False
        try:
            self._lock.write_owner()
            # There is no script in an interactive session, nor with -c.
            script = sys.argv[0] if Path(sys.argv[0]).is_file() else None
            self.store = Store.open(self.run, sys.argv, script)
            if (others := others_who_may_write(self.run.root)) is not None:
                say(others)
            os.register_at_fork(after_in_child=self._close_in_child)
        except BaseException:
            self._lock.close()
            raise
        self._journal = Journal(self.run.journal_file)
        self._checkpoint_journal = CheckpointJournal(self._journal)
        self._journal.write(
            JournalEvent.RUN_STARTED, command=recorded(sys.argv), version=__version__
        )
        self.page, descriptor = ControlPage.create()
        os.close(descriptor)
        self.slots = Slots.create(self.page)
        self._own_writer = OwnWriter(self.store, self.published, self.failed)
        self._tracker_variables = TrackerVariables(self.run, self.store.run_id)
        self._mlflow = MlflowWatch(self.run)
        self._resumed_from: Checkpoint | None = None
        _trained.add(self._path)

    def _refuse_second_training(self) -> None:
        # It would begin at the end of the first, whatever its model: another fold, say, would be
        # complete at once. Where the script has deleted the run, this is a new one.
        if self._path in _trained and self.run.run_file.exists():
            raise ConfigError(
                f"cannot train a second time in {self.run.root}: a run is one training, and this "
                "process has trained there already; give each training a run of its own, such as "
                "run_dir='runs/second' for its Session or OrchestratorCallback"
            )

    def snapshot_to_resume(self) -> Snapshot | None:
        """None: what was in memory ended with the process before."""
        return None

    def checkpoint_to_resume(self) -> Checkpoint | None:
        """The newest that verification finds valid; says what it set aside."""
        self.store.sweep()
        for sentence in self.store.unrecognised():
            say(f"in {self.run.checkpoints} {sentence}, and is passed over")
        self._resumed_from = self.store.newest_valid(self._quarantined)
        return self._resumed_from

    def reject(self) -> None:
        """Nobody decides for us: the error says it."""

    def writes_under_way(self) -> list[tuple[Snapshot, Future[Checkpoint]]]:
        """None, as with ``snapshot_to_resume``."""
        return []

    def write(self, snapshot: Snapshot, reason: Reason) -> Future[Checkpoint]:
        """Write it in a thread."""
        written: Future[Checkpoint] = Future()
        self._own_writer.write(snapshot, reason, written)
        return written

    def took(self, snapshot: Snapshot, **facts: Any) -> None:
        """Journal one in a while."""
        sizes = {"step": snapshot.manifest.step, "bytes": snapshot.image_bytes}
        self._checkpoint_journal.record_snapshot({**sizes, **facts})

    def tell(self, event: JournalEvent, **facts: Any) -> None:
        """Write it into the journal."""
        self._journal.write(event, **facts)

    def show(self, metrics: dict[str, float]) -> None:
        """Nobody watches; it is the time to look at what the script tracks its run with."""
        self._mlflow.poll()

    def published(self, checkpoint: Checkpoint, seconds: float | None) -> None:
        """Journal it, then delete what the policy does not keep."""
        self._checkpoint_journal.record_publication(checkpoint, seconds=seconds)
        in_use = {self._resumed_from.name} if self._resumed_from else set()
        try:
            deleted = self.store.apply_retention(self._policy, in_use, self._quarantined)
        except (OSError, UnreadableError) as error:
            say(f"cannot tidy up {self.run.checkpoints}: {error}")
            return
        for old in deleted:
            self._checkpoint_journal.record_deletion(old)

    def failed(self, error: CheckpointWriteError) -> None:
        """Journal it, and say so."""
        self._checkpoint_journal.record_failure(str(error), step=error.step)
        say(str(error))

    def leave(self, status: ExitStatus | None, error: dict[str, Any] | None) -> None:
        """Journal how it ended and free the run."""
        self._own_writer.finish()
        if status is ExitStatus.COMPLETE:
            self.tell(JournalEvent.RUN_COMPLETED, step=self.page.values[Field.STEP])
        elif status is not None:
            step = self.page.values[Field.STEP]
            self.tell(JournalEvent.RUN_STOPPED, status=status, step=step)
        if status is not ExitStatus.COMPLETE:
            _trained.discard(self._path)
        self._left = True
        self._tracker_variables.restore()
        self.slots.close()
        self._lock.unlock_and_close()

    def _close_in_child(self) -> None:
        # A loader worker that outlives a killed trainer must not hold the run.
        if not self._left:
            self._lock.close()
            _trained.discard(self._path)
            self._left = True

    def _quarantined(self, error: CheckpointInvalidError) -> None:
        if os.path.lexists(error.path):
            say(f"{error}; it cannot be moved to quarantine and is passed over")
            return
        say(f"{error}; it was moved to quarantine")
        self._checkpoint_journal.record_quarantine(error.path, error.reason)
