"""The backend without a supervisor: it locks the run, journals, verifies and rotates itself."""

import os
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.checkpoint_journal import CheckpointJournal
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.newest_valid import newest_valid
from orchestrator.checkpoint.store import Store
from orchestrator.config import Config
from orchestrator.errors import (
    CheckpointInvalidError,
    ConfigError,
)
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import ControlPage, Field
from orchestrator.ipc.training_time import training_time
from orchestrator.rundir.completion import CONTINUE_VARIABLE, refuse_other_arguments
from orchestrator.rundir.history_index import HistoryIndexer, rotate_journal
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.lock import RunLock
from orchestrator.rundir.name_pattern import run_dir_of
from orchestrator.rundir.ownership import others_who_may_write
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.program import has_changed_directory, is_notebook
from orchestrator.rundir.start import Start
from orchestrator.rundir.trust import TRUST_VARIABLE, refuse_foreign
from orchestrator.snapshot.slots import Slots, Snapshot
from orchestrator.system.recorded_command import recorded
from orchestrator.telemetry.progress import Progress
from orchestrator.telemetry.stop_text import Stop
from orchestrator.telemetry.trackers import MlflowWatch, TrackerVariables
from orchestrator.training.exits import print_message
from orchestrator.training.runtime.backend import Report, RunSettings, SharedMemory, TrainerFacts
from orchestrator.training.runtime.directory_watch import DirectoryWatch
from orchestrator.training.runtime.local_writer import LocalWriter

_JOURNAL_EVENTS = {
    Report.RESUMED: JournalEvent.RESUMED,
    Report.EXACTNESS_LOST: JournalEvent.EXACTNESS_LOST,
    Report.STOP_NOTICED: JournalEvent.STOP_NOTICED,
}

_trained: set[Path] = set()
"""The run directories that this process trains, or has trained to their end."""


def _run_dir(pattern: Path | None, start: Start) -> RunDir:
    """Return the run's directory, which a later change of the working directory does not move.

    Raises ConfigError where it would be shared by all notebooks, or a pattern is wrong.
    """
    if pattern is None and is_notebook() and start.script is None:
        raise ConfigError(
            "cannot name the run: this notebook does not know its own name, and all notebooks of "
            "this folder would share one run; give Session(run_dir='runs/my-notebook')"
        )
    return RunDir(run_dir_of(pattern, start.script or sys.argv[0], start).absolute())


def _outcome(status: ExitStatus | None) -> str:
    if status is None:
        return "failed"
    return "complete" if status is ExitStatus.COMPLETE else "stopped"


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
        start = Start.of_process()
        self._run_dir = _run_dir(run_dir or config.run_dir, start)
        self._resolved_path = self._run_dir.root.resolve()
        self._refuse_second_training()
        self._hint_at_new_directory(run_dir or config.run_dir)
        self._run_dir.create()
        refuse_foreign(self._run_dir, trusted=os.environ.get(TRUST_VARIABLE) == "on")
        self._lock = RunLock(self._run_dir)
        self._has_left = False
        try:
            self._lock.write_owner()
            accept_other = os.environ.get(CONTINUE_VARIABLE) == "on"
            self._store = Store.open(
                self._run_dir, sys.orig_argv, start.script, start=start, accept_other=accept_other
            )
            if not accept_other:
                refuse_other_arguments(self._run_dir, start)
            if (others := others_who_may_write(self._run_dir.root)) is not None:
                print_message(others)
            os.register_at_fork(after_in_child=self._close_in_child)
        except BaseException:
            self._lock.close()
            raise
        rotate_journal(self._run_dir, config.log_size)
        self._journal = Journal(self._run_dir.journal_file)
        self._journal.listeners.append(HistoryIndexer(self._run_dir).on_event)
        self._checkpoint_journal = CheckpointJournal(self._journal)
        self._journal.write(
            JournalEvent.RUN_STARTED, command=recorded(sys.orig_argv), version=__version__
        )
        page, descriptor = ControlPage.create()
        os.close(descriptor)
        self._facts = TrainerFacts(
            self._run_dir,
            self._store,
            SharedMemory(page, Slots.create(page)),
            RunSettings(
                command=sys.orig_argv,
                every=config.every,
                snapshot_budget=config.snapshot_share,
                allow_data_change=config.allow_data_change,
            ),
        )
        self._local_writer = LocalWriter(self)
        self._tracker_variables = TrackerVariables(self._run_dir, self._store.run_id)
        self._mlflow = MlflowWatch(self._run_dir)
        self._directory_watch = DirectoryWatch(self._run_dir)
        self._resumed_from: Checkpoint | None = None
        self._newest: Checkpoint | None = None
        self._problem: str | None = None
        self._began = time.monotonic()
        self._has_told_training = False
        _trained.add(self._resolved_path)

    def _hint_at_new_directory(self, given: Path | None) -> None:
        is_relative = given is None or not given.is_absolute()
        if is_relative and has_changed_directory() and not os.path.exists(self._run_dir.run_file):
            print_message(
                f"the script has changed its working directory, and a new run begins in "
                f"{self._run_dir.root}; if that directory is a new one for each start, as with "
                "Hydra, the run will not be found again: give Session(run_dir=...) or "
                "ORCHESTRATOR_RUN_DIR an absolute path, or use `orchestrator run`"
            )

    def _refuse_second_training(self) -> None:
        # It would begin at the end of the first, whatever its model: another fold, say, would be
        # complete at once. Where the script has deleted the run, this is a new one.
        if self._resolved_path in _trained and os.path.exists(self._run_dir.run_file):
            raise ConfigError(
                f"cannot train a second time in {self._run_dir.root}: a run is one training, and "
                "this process has trained there already; give each training a run of its own, such "
                "as run_dir='runs/second' for its Session or OrchestratorCallback"
            )

    @property
    def facts(self) -> TrainerFacts:
        """What is known of the run."""
        return self._facts

    def newest_state(self) -> Checkpoint | None:
        """Return the newest valid checkpoint; snapshots in memory end with their process.

        Raises:
            NoValidCheckpointError: There are checkpoints, and none of them is valid.
        """
        self._store.sweep()
        for sentence in self._store.unrecognised():
            print_message(f"in {self._run_dir.checkpoints} {sentence}, and is passed over")
        self._resumed_from = self._newest = newest_valid(self._store, self._report_quarantine)
        return self._resumed_from

    def write(self, snapshot: Snapshot, reason: Reason, written: Future[Checkpoint]) -> None:
        """Write a snapshot to disk, in a thread of this process."""
        self._local_writer.write(snapshot, reason, written)

    def report(self, report: Report, **facts: Any) -> None:
        """Write an event into the journal, and print what went wrong."""
        if report is Report.SNAPSHOT_TAKEN:
            self._checkpoint_journal.record_snapshot(facts)
        elif report is Report.SAVE_FAILED:
            self._checkpoint_journal.record_failure(facts["problem"], step=facts["step"])
            print_message(facts["problem"])
            self._problem = str(facts["problem"])
        elif report in _JOURNAL_EVENTS:
            self._journal.write(_JOURNAL_EVENTS[report], **facts)

    def report_metrics(self, metrics: dict[str, float]) -> None:
        """Check once a second what may have changed; no supervisor shows metrics."""
        if not self._has_told_training:
            self._has_told_training = True
            step = self._resumed_from.manifest.step if self._resumed_from else 0
            starting = self._training_time()["starting_seconds"]
            self._journal.write(JournalEvent.TRAINING_STARTED, step=step, starting_seconds=starting)
        self._directory_watch.check()
        self._mlflow.poll()

    def record_publish(self, checkpoint: Checkpoint, seconds: float) -> None:
        """Journal a new checkpoint, then delete what the policy does not keep."""
        self._newest, self._problem = checkpoint, None
        self._checkpoint_journal.record_publication(checkpoint, seconds=seconds)
        in_use = {self._resumed_from.name} if self._resumed_from else set()
        try:
            deleted = self._store.apply_retention(self._policy, in_use, self._report_quarantine)
        except Exception as error:  # the training goes on, whatever is wrong with old ones
            print_message(f"cannot delete old checkpoints in {self._run_dir.checkpoints}: {error}")
            return
        for old in deleted:
            self._checkpoint_journal.record_deletion(old)

    def leave(self, status: ExitStatus | None, error: dict[str, Any] | None) -> None:
        """Journal how the session ended and free the run."""
        self._directory_watch.check()
        self._local_writer.finish()
        self._directory_watch.close()
        page = self._facts.memory.page
        step, epoch = page.values[Field.STEP], page.values[Field.EPOCH]
        ended_at = Progress.of(step, epoch, page.total_steps, page.total_epochs).facts_of_end()
        spent: dict[str, Any] = self._training_time()
        self._journal.write(
            JournalEvent.TRAINING_ENDED, outcome=_outcome(status), step=step, **spent
        )
        if status is ExitStatus.COMPLETE:
            self._journal.write(JournalEvent.RUN_COMPLETED, **ended_at)
        elif status is not None:
            self._journal.write(JournalEvent.RUN_STOPPED, status=status, **ended_at)
            self._print_stop(status, step)
        if status is not ExitStatus.COMPLETE:
            _trained.discard(self._resolved_path)
        self._has_left = True
        self._tracker_variables.restore()
        self._facts.memory.slots.close()
        self._lock.unlock_and_close()

    def _training_time(self) -> dict[str, float | None]:
        page = self._facts.memory.page
        return training_time(page, self._began, time.monotonic())

    def _print_stop(self, status: ExitStatus, step: int) -> None:
        if status not in (ExitStatus.STOPPED_SAVED, ExitStatus.STOPPED_UNSAVED):
            return  # refused, and the reason has been printed
        newest = self._newest
        if status is ExitStatus.STOPPED_UNSAVED and newest and not newest.manifest.healthy:
            newest = self._store.newest_healthy()
        saved_step = newest.manifest.step if newest else 0
        stop = Stop(
            is_saved=status is ExitStatus.STOPPED_SAVED,
            step=saved_step,
            path=str(newest.path) if newest else None,
            lost_steps=step - saved_step if step > saved_step else None,
            problem=self._problem,
        )
        print_message("\n    ".join(stop.lines))

    def _close_in_child(self) -> None:
        # A loader worker that outlives a killed trainer must not hold the run.
        if not self._has_left:
            self._lock.close()
            _trained.discard(self._resolved_path)
            self._has_left = True

    def _report_quarantine(self, error: CheckpointInvalidError) -> None:
        if os.path.lexists(error.path):
            print_message(f"{error}; it cannot be moved to quarantine and is skipped")
            return
        print_message(f"{error}; it was moved to quarantine")
        self._checkpoint_journal.record_quarantine(error.path, error.reason)
