"""The backend without a supervisor: it locks the run, journals, verifies and rotates itself."""

import os
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.store import Store
from orchestrator.config import Config
from orchestrator.errors import (
    CheckpointInvalidError,
    ConfigError,
    UnreadableError,
)
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import ControlPage, Field
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.lock import RunLock
from orchestrator.rundir.paths import RunDir, default_run_dir
from orchestrator.snapshot.slots import Slots, Snapshot
from orchestrator.telemetry.trackers import MlflowWatch, TrackerVariables
from orchestrator.training.exits import print_message
from orchestrator.training.runtime.backend import Report, RunFacts, RunSettings, SharedMemory
from orchestrator.training.runtime.local_writer import LocalWriter

SNAPSHOT_SAMPLE_SECONDS = 60.0
_JOURNAL_EVENTS = {
    Report.RESUMED: JournalEvent.RESUMED,
    Report.EXACTNESS_LOST: JournalEvent.EXACTNESS_LOST,
    Report.SNAPSHOT_TAKEN: JournalEvent.SNAPSHOT_TAKEN,
    Report.SAVE_FAILED: JournalEvent.CHECKPOINT_FAILED,
    Report.STOP_NOTICED: JournalEvent.STOP_NOTICED,
}

_trained: set[Path] = set()
"""The run directories that this process trains, or has trained to their end."""


class Standalone:
    """The backend of a session in a process without a supervisor."""

    def __init__(self, run_dir: Path | None) -> None:
        """Open and lock the run.

        Raises:
            ConfigError: A setting is wrong, or this process has trained in this run already.
            RunInUseError: Another process works on the run.
        """
        config = Config.resolve({}, os.environ, Path.cwd())
        self._policy = config.retention
        self.run = RunDir(run_dir or config.run_dir or default_run_dir(sys.argv[0]))
        self._path = self.run.root.resolve()  # the script may change its directory
        self._refuse_second_training()
        self.run.create()
        self._lock = RunLock(self.run)
        self._left = False
        try:
            self._lock.sign()
            # There is no script in an interactive session, nor with -c.
            script = sys.argv[0] if Path(sys.argv[0]).is_file() else None
            self.store = Store.open(self.run, sys.argv, script)
            os.register_at_fork(after_in_child=self._close_in_child)
        except BaseException:
            self._lock.release()
            raise
        self._journal = Journal(self.run.journal_file)
        self._journal.write(JournalEvent.RUN_STARTED, command=sys.argv)
        page, descriptor = ControlPage.create()
        os.close(descriptor)
        self._facts = RunFacts(
            self.run,
            self.store,
            SharedMemory(page, Slots.create(page)),
            RunSettings(
                command=sys.argv,
                every=config.every,
                snapshot_budget=config.snapshot_budget,
                allow_data_change=config.allow_data_change,
            ),
        )
        self._local_writer = LocalWriter(self)
        self._tracker_variables = TrackerVariables(self.run, self.store.run_id)
        self._mlflow = MlflowWatch(self.run)
        self._resumed_from: Checkpoint | None = None
        self._snapshot_journalled = float("-inf")
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

    @property
    def facts(self) -> RunFacts:
        """What is known of the run."""
        return self._facts

    def newest_state(self) -> Checkpoint | None:
        """Return the newest valid checkpoint; snapshots in memory end with their process.

        Raises:
            NoValidCheckpointError: There are checkpoints, and none of them is valid.
        """
        self.store.sweep()
        self._resumed_from = self.store.newest_valid(self._quarantined)
        return self._resumed_from

    def write(self, snapshot: Snapshot, reason: Reason, written: Future[Checkpoint]) -> None:
        """Write a snapshot to disk, in a thread of this process."""
        self._local_writer.write(snapshot, reason, written)

    def report(self, report: Report, **facts: Any) -> None:
        """Write an event into the journal; of snapshots, one a minute."""
        if report is Report.SAVE_FAILED:
            print_message(facts["problem"])
        if report is Report.SNAPSHOT_TAKEN:
            now = time.monotonic()
            if now - self._snapshot_journalled < SNAPSHOT_SAMPLE_SECONDS:
                return
            self._snapshot_journalled = now
        if report in _JOURNAL_EVENTS:
            self._journal.write(_JOURNAL_EVENTS[report], **facts)

    def report_metrics(self, metrics: dict[str, float]) -> None:
        """Record the script's MLflow run, if it has one by now; no supervisor shows metrics."""
        self._mlflow.consider()

    def record_publish(self, checkpoint: Checkpoint, seconds: float) -> None:
        """Journal a new checkpoint, then delete what the policy does not keep."""
        self._journal.write(JournalEvent.CHECKPOINT_PUBLISHED, **checkpoint.facts, seconds=seconds)
        in_use = {self._resumed_from.name} if self._resumed_from else set()
        try:
            deleted = self.store.apply_retention(self._policy, in_use, self._quarantined)
        except (OSError, UnreadableError) as error:
            print_message(f"cannot tidy up {self.run.checkpoints}: {error}")
            return
        for old in deleted:
            self._journal.write(JournalEvent.CHECKPOINT_DELETED, path=str(old.path))

    def leave(self, status: ExitStatus | None, error: dict[str, Any] | None) -> None:
        """Journal how the session ended and free the run."""
        self._local_writer.finish()
        if status is ExitStatus.COMPLETE:
            self._journal.write(JournalEvent.RUN_COMPLETED)
        elif status is not None:
            step = self._facts.memory.page.values[Field.STEP]
            self._journal.write(JournalEvent.RUN_STOPPED, status=status, step=step)
        if status is not ExitStatus.COMPLETE:
            _trained.discard(self._path)
        self._left = True
        self._tracker_variables.restore()
        self._facts.memory.slots.close()
        self._lock.free()

    def _close_in_child(self) -> None:
        # A loader worker that outlives a killed trainer must not hold the run.
        if not self._left:
            self._lock.release()
            _trained.discard(self._path)
            self._left = True

    def _quarantined(self, error: CheckpointInvalidError) -> None:
        if os.path.lexists(error.path):
            print_message(f"{error}; it cannot be moved to quarantine and is passed over")
            return
        print_message(f"{error}; it was moved to quarantine")
        self._journal.write(
            JournalEvent.CHECKPOINT_QUARANTINED, path=str(error.path), reason=error.reason
        )
