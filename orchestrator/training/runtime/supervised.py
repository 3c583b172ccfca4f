"""The backend under a supervisor, which keeps the journal, writes checkpoints and rotates them."""

import contextlib
import os
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.checkpoint import Checkpoint, read_checkpoint
from orchestrator.checkpoint.checkpoint_journal import CheckpointJournal
from orchestrator.checkpoint.manifest import Reason, json_metrics
from orchestrator.checkpoint.store import Store
from orchestrator.config import Every
from orchestrator.errors import ConfigError
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.messages import (
    ATTEMPT_VARIABLE,
    RESUME_VARIABLE,
    RUN_DIR_VARIABLE,
    SOCKET_VARIABLE,
    Message,
)
from orchestrator.rundir.failure_times import FailureRate
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import RunDir, run_root_above
from orchestrator.rundir.start import Start
from orchestrator.snapshot.slots import Snapshot
from orchestrator.spare.loaded_modules import ModuleReport
from orchestrator.system.durable import write_json
from orchestrator.telemetry.trackers import MlflowWatch
from orchestrator.training.runtime.backend import Report, RunSettings, SharedMemory, TrainerFacts
from orchestrator.training.runtime.directory_watch import DirectoryWatch
from orchestrator.training.runtime.local_writer import LocalWriter
from orchestrator.training.runtime.rank_link import RankLink, World
from orchestrator.training.runtime.supervisor_connection import SupervisorConnection
from orchestrator.training.runtime.write_answers import complete

# What this process writes into the journal itself once the supervisor is dead.
_JOURNAL_EVENTS = {
    Report.RESUMED: JournalEvent.RESUMED,
    Report.EXACTNESS_LOST: JournalEvent.EXACTNESS_LOST,
    Report.STOP_NOTICED: JournalEvent.STOP_NOTICED,
}


class Supervised:
    """The backend of a session whose process, or an ancestor of it, a supervisor has started.

    It survives the supervisor: what that has not written yet, this process then writes itself.
    """

    def __init__(self) -> None:
        """Join the run.

        Raises:
            ConfigError: The supervisor is gone or refuses, or a variable is missing.
        """
        try:
            run_dir = RunDir(Path(os.environ[RUN_DIR_VARIABLE]))
            attempt = int(os.environ[ATTEMPT_VARIABLE])
        except (KeyError, ValueError):
            raise ConfigError(
                f"cannot join a supervised run: {SOCKET_VARIABLE} is set, but {RUN_DIR_VARIABLE} "
                f"or the number in {ATTEMPT_VARIABLE} is missing; pass all three on, or unset "
                f"{SOCKET_VARIABLE} to run without a supervisor"
            ) from None
        world = World.of(os.environ)
        self._connection = SupervisorConnection(os.environ, run_dir, self)
        welcome = self._connection.welcome
        self._rank_link = None
        if world.size > 1:
            common, send = self._connection.common, self._connection.send
            self._rank_link = RankLink(world, run_dir, send, common)
        failures = welcome["failures"]
        self._changing_writes = threading.Lock()
        self._inherited = self._connection.slots.snapshots()
        self._writes: dict[int, tuple[Snapshot, Reason, Future[Checkpoint]]] = {
            snapshot.generation: (snapshot, Reason.CRASH, Future())
            for snapshot in self._inherited
            if snapshot.generation in welcome["writing_generations"]
        }
        self._facts = TrainerFacts(
            run_dir,
            Store(run_dir, welcome["run_id"], start=Start.from_json(welcome.get("start"))),
            SharedMemory(
                self._connection.page,
                self._connection.slots,
                tuple((snapshot, written) for snapshot, _, written in self._writes.values()),
            ),
            RunSettings(
                command=welcome["command"],
                every=Every(**welcome["every"]),
                # Several ranks are told when to take one: their clocks differ.
                snapshot_budget=None if world.size > 1 else welcome["snapshot_budget"],
                allow_data_change=welcome["allow_data_change"],
                snapshot_cost_seconds=welcome["snapshot_cost_seconds"],
                failures=None if failures is None else FailureRate(**failures),
            ),
            attempt,
            self._rank_link,
        )
        self._attempt_files = run_dir.attempt(attempt).rank(world.rank)
        self._journal = Journal(run_dir.journal_file)
        self._checkpoint_journal = CheckpointJournal(self._journal)
        self._local_writer = LocalWriter(self)
        modules_file = self._attempt_files.modules_file
        self._module_report = ModuleReport(modules_file, self._report_modules)
        self._mlflow = MlflowWatch(run_dir)
        self._directory_watch = DirectoryWatch(run_dir)
        self._connection.listen()

    @property
    def facts(self) -> TrainerFacts:
        """What is known of the run."""
        return self._facts

    def newest_state(self) -> Snapshot | Checkpoint | None:
        """Return what the supervisor chose and verified just before it started this process.

        Raises ConfigError where one of several ranks has no part of it.
        """
        generation = self._connection.welcome["resume_generation"]
        for snapshot in self._inherited:
            if snapshot.generation == generation:
                return snapshot
        if generation is not None and self._rank_link is not None:
            raise ConfigError(
                f"cannot resume: rank {self._facts.world.rank} has no part of the snapshot in "
                "memory that the other ranks resume from; run the same command again"
            )
        path = os.environ.get(RESUME_VARIABLE)
        # Only its name counts: the checkpoints of this run are all in one directory.
        name = Path(path).parent.name if path else None
        return read_checkpoint(self._facts.store.run.checkpoints / name) if name else None

    def write(self, snapshot: Snapshot, reason: Reason, written: Future[Checkpoint]) -> None:
        """Ask the supervisor to write a snapshot; write it in this process once that is dead."""
        with self._changing_writes:
            self._writes[snapshot.generation] = (snapshot, reason, written)
        self._connection.send("write", generation=snapshot.generation, reason=reason)
        if self._connection.supervisor_died:
            self._write_alone()

    def record_publish(self, checkpoint: Checkpoint, seconds: float) -> None:
        """Report a new checkpoint; a dead supervisor's successor finds it on the disk."""
        self._connection.send("published", name=checkpoint.name, seconds=seconds)

    def report(self, report: Report, **facts: Any) -> None:
        """Report to the supervisor, or to the journal once that is dead."""
        if report is Report.SNAPSHOT_TAKEN:
            self._connection.offer(report, **facts)
        elif not self._connection.supervisor_died:
            self._connection.send(report, **facts)
        elif report is Report.SAVE_FAILED:
            attempt, step = self._facts.attempt, facts["step"]
            self._checkpoint_journal.record_failure(facts["problem"], attempt, step=step)
        elif report in _JOURNAL_EVENTS:
            self._journal.write(_JOURNAL_EVENTS[report], self._facts.attempt, **facts)

    def report_metrics(self, metrics: dict[str, float]) -> None:
        """Report the metrics, and what else a supervisor hears about once a second."""
        if not self._facts.world.is_main:
            return
        self._directory_watch.check()
        self._connection.offer("metrics", metrics=json_metrics(metrics))
        self._module_report.write_if_due()
        self._mlflow.poll()

    def _report_modules(self) -> None:
        self._connection.send("modules")

    def leave(self, status: ExitStatus | None, error: dict[str, Any] | None) -> None:
        """Leave the exception's description in error.json, report the status, disconnect."""
        self._directory_watch.check()
        self._directory_watch.close()
        if error is not None:
            # A full disk must not replace the exception that the user has to see.
            with contextlib.suppress(OSError):
                file = self._attempt_files.error_file
                write_json(file, error, below=run_root_above(file))
        self._local_writer.finish()
        if status is not None:
            self._connection.send("ended", status=int(status))
        self._connection.close()

    # --- what the connection's thread calls --------------------------------------------------

    def on_message(self, message: Message) -> None:
        """Complete the write that the supervisor's answer is about."""
        if self._rank_link is not None and self._rank_link.on_message(message):
            return
        with self._changing_writes:
            write = self._writes.pop(message.get("generation", 0), None)
        if write is None:
            return
        snapshot, _, written = write
        complete(written, message, self._facts.run_dir, snapshot.manifest.step)

    def on_supervisor_death(self) -> None:
        """Write what the supervisor has not written."""
        self._write_alone()

    def _write_alone(self) -> None:
        with self._changing_writes:
            writes, self._writes = list(self._writes.values()), {}
        for snapshot, reason, written in writes:
            self._local_writer.write(snapshot, reason, written)
