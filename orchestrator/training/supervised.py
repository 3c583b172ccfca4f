"""A session under a supervisor, which keeps the journal, rotates, and survives us."""

import contextlib
import os
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.manifest import json_metrics
from orchestrator.checkpoint.reading import Checkpoint, read_checkpoint
from orchestrator.checkpoint.store import Store
from orchestrator.config import Every
from orchestrator.durable import write_json
from orchestrator.exitcodes import ExitStatus
from orchestrator.journal import Journal, JournalEvent
from orchestrator.rundir import RunDir
from orchestrator.training.lifeline import Lifeline
from orchestrator.wire import ATTEMPT_VARIABLE, RESUME_VARIABLE, RUN_DIR_VARIABLE

_MESSAGES = {
    JournalEvent.RESUMED: "resumed",
    JournalEvent.STOP_NOTICED: "stop_noticed",
    JournalEvent.CHECKPOINT_FAILED: "save_failed",
}


class Supervised:
    """Home of a session whose process, or an ancestor of it, was started by a supervisor."""

    supervised = True

    def __init__(self) -> None:
        """Join the run. Raises ConfigError when the supervisor is gone or refuses."""
        self.run = RunDir(Path(os.environ[RUN_DIR_VARIABLE]))
        self._attempt = int(os.environ[ATTEMPT_VARIABLE])
        self._lifeline = Lifeline(os.environ, self.run)
        welcome = self._lifeline.welcome
        self.page = self._lifeline.page
        self.store = Store(self.run, welcome["run_id"])
        self.command = welcome["command"]
        self.every = Every(**welcome["every"])
        self._journal = Journal(self.run.journal_file)

    def checkpoint_to_resume(self) -> Checkpoint | None:
        """What the supervisor chose and verified just before it started us."""
        path = os.environ.get(RESUME_VARIABLE)
        return read_checkpoint(Path(path).parent) if path else None

    def tell(self, event: JournalEvent, **facts: Any) -> None:
        """Report to the supervisor, or to the journal once it is dead."""
        if self._lifeline.supervisor_died:
            self._journal.write(event, self._attempt, **facts)
        else:
            self._lifeline.send(_MESSAGES[event], **facts)

    def show(self, metrics: dict[str, float]) -> None:
        """Report the latest metrics."""
        self._lifeline.offer("metrics", metrics=json_metrics(metrics))

    def published(self, checkpoint: Checkpoint, seconds: float | None) -> None:
        """Report a new checkpoint; a dead supervisor's successor finds it on the disk."""
        self._lifeline.send("published", name=checkpoint.name, seconds=seconds)

    def leave(self, status: ExitStatus | None, error: dict[str, Any] | None) -> None:
        """Leave the exception's description and say goodbye."""
        if error is not None:
            # A full disk must not replace the exception that the user has to see.
            with contextlib.suppress(OSError):
                write_json(self.run.attempt(self._attempt).error_file, error)
        if status is not None:
            self._lifeline.send("ended", status=int(status))
        self._lifeline.close()
