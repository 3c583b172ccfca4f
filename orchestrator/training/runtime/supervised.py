"""A session under a supervisor, which keeps the journal, writes, rotates, and survives us."""

import contextlib
import errno
import os
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.checkpoint import Checkpoint, read_checkpoint
from orchestrator.checkpoint.manifest import Reason, json_metrics
from orchestrator.checkpoint.store import Store
from orchestrator.config import Every
from orchestrator.errors import CheckpointWriteError, ConfigError, OrchestratorError
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.messages import (
    ATTEMPT_VARIABLE,
    RESUME_VARIABLE,
    RUN_DIR_VARIABLE,
    SOCKET_VARIABLE,
    Message,
)
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import RunDir
from orchestrator.snapshot.slots import Snapshot
from orchestrator.spare.loaded_modules import ModuleReport
from orchestrator.system.durable import write_json
from orchestrator.telemetry.trackers import MlflowWatch
from orchestrator.training.runtime.local_writer import OwnWriter
from orchestrator.training.runtime.supervisor_connection import Lifeline

_MESSAGES = {
    JournalEvent.RESUMED: "resumed",
    JournalEvent.EXACTNESS_LOST: "exactness_lost",
    JournalEvent.STOP_NOTICED: "stop_noticed",
    JournalEvent.CHECKPOINT_FAILED: "save_failed",
}


class Supervised:
    """Home of a session whose process, or an ancestor of it, was started by a supervisor."""

    supervised = True

    def __init__(self) -> None:
        """Join the run. Raises ConfigError when the supervisor is gone or refuses."""
        try:
            self.run = RunDir(Path(os.environ[RUN_DIR_VARIABLE]))
            self.attempt = int(os.environ[ATTEMPT_VARIABLE])
        except (KeyError, ValueError):
            raise ConfigError(
                f"cannot join a supervised run: {SOCKET_VARIABLE} is set, but {RUN_DIR_VARIABLE} "
                f"or the number in {ATTEMPT_VARIABLE} is missing; pass all three on, or unset "
                f"{SOCKET_VARIABLE} to run without a supervisor"
            ) from None
        self._lifeline = Lifeline(os.environ, self.run, self._hear, self._write_alone)
        welcome = self._lifeline.welcome
        self.page = self._lifeline.page
        self.slots = self._lifeline.slots
        self.store = Store(self.run, welcome["run_id"])
        self.command = welcome["command"]
        self.every = Every(**welcome["every"])
        self.snapshot_budget: float | None = welcome["snapshot_budget"]
        self.snapshot_interval: float | None = welcome["snapshot_interval_seconds"]
        self.allow_data_change: bool = welcome["allow_data_change"]
        self._journal = Journal(self.run.journal_file)
        self._own_writer = OwnWriter(self.store, self.published, self.failed)
        self._module_report = ModuleReport(
            self.run.attempt(self.attempt).modules_file, lambda: self._lifeline.send("modules")
        )
        self._mlflow = MlflowWatch(self.run)
        self._changing_writes = threading.Lock()
        self._writes: dict[int, tuple[Snapshot, Reason, Future[Checkpoint]]] = {}
        self._left = self.slots.snapshots()
        for snapshot in self._left:
            if snapshot.generation in welcome["writing_generations"]:
                self._writes[snapshot.generation] = (snapshot, Reason.CRASH, Future())
        self._lifeline.listen()

    def snapshot_to_resume(self) -> Snapshot | None:
        """What the supervisor hands on of the attempt before."""
        generation = self._lifeline.welcome["resume_generation"]
        return next((s for s in self._left if s.generation == generation), None)

    def checkpoint_to_resume(self) -> Checkpoint | None:
        """What the supervisor chose and verified just before it started us."""
        path = os.environ.get(RESUME_VARIABLE)
        return read_checkpoint(Path(path).parent) if path else None

    def reject(self) -> None:
        """Have the supervisor think about what the next attempt resumes from."""
        self._lifeline.send("rejected")

    def writes_under_way(self) -> list[tuple[Snapshot, Future[Checkpoint]]]:
        """What the supervisor still writes for the attempt before."""
        with self._changing_writes:
            return [(snapshot, written) for snapshot, _, written in self._writes.values()]

    def write(self, snapshot: Snapshot, reason: Reason) -> Future[Checkpoint]:
        """Have the supervisor write it; by ourselves once it is dead."""
        written: Future[Checkpoint] = Future()
        with self._changing_writes:
            self._writes[snapshot.generation] = (snapshot, reason, written)
        self._lifeline.send("write", generation=snapshot.generation, reason=reason)
        if self._lifeline.supervisor_died:
            self._write_alone()
        return written

    def tell(self, event: JournalEvent, **facts: Any) -> None:
        """Report to the supervisor, or to the journal once it is dead."""
        if self._lifeline.supervisor_died:
            self._journal.write(event, self.attempt, **facts)
        else:
            self._lifeline.send(_MESSAGES[event], **facts)

    def show(self, metrics: dict[str, float]) -> None:
        """Report the latest metrics, and what else a supervisor hears about once a second."""
        self._lifeline.offer("metrics", metrics=json_metrics(metrics))
        self._module_report.write_if_due()
        self._mlflow.poll()

    def took(self, snapshot: Snapshot, **facts: Any) -> None:
        """Report a snapshot."""
        step, image_bytes = snapshot.manifest.step, snapshot.image_bytes
        self._lifeline.offer("snapshot", step=step, bytes=image_bytes, **facts)

    def published(self, checkpoint: Checkpoint, seconds: float | None) -> None:
        """Report a new checkpoint; a dead supervisor's successor finds it on the disk."""
        self._lifeline.send("published", name=checkpoint.name, seconds=seconds)

    def failed(self, error: CheckpointWriteError) -> None:
        """Report a failure of our own; those of the supervisor it reports itself."""
        self.tell(JournalEvent.CHECKPOINT_FAILED, step=error.step, problem=str(error))

    def leave(self, status: ExitStatus | None, error: dict[str, Any] | None) -> None:
        """Leave the exception's description and say goodbye."""
        if error is not None:
            # A full disk must not replace the exception that the user has to see.
            with contextlib.suppress(OSError):
                write_json(self.run.attempt(self.attempt).error_file, error)
        self._own_writer.finish()
        if status is not None:
            self._lifeline.send("ended", status=int(status))
        self._lifeline.close()

    def _hear(self, message: Message) -> None:
        with self._changing_writes:
            write = self._writes.pop(message.get("generation", 0), None)
        if write is None:
            return
        snapshot, _, written = write
        if message.get("type") == "written":
            try:
                written.set_result(read_checkpoint(self.run.checkpoints / str(message["name"])))
            except OrchestratorError as error:
                written.set_exception(error)
        else:
            problem = str(message.get("problem"))
            cause = OSError(errno.EIO, problem)
            written.set_exception(CheckpointWriteError(snapshot.manifest.step, cause))

    def _write_alone(self) -> None:
        """The supervisor is dead: do what it has not done."""
        with self._changing_writes:
            writes, self._writes = list(self._writes.values()), {}
        for snapshot, reason, written in writes:
            self._own_writer.write(snapshot, reason, written)
