"""Removes what a start has made of a run directory, where nothing of the command ran."""

import contextlib
import os

from orchestrator.errors import ConfigError
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import AttemptDir, RunDir
from orchestrator.supervisor.recovery.failure_kinds import Kind
from orchestrator.system.durable import Disk


class StartTraces:
    """What was there before a start; make it before the run directory is created."""

    def __init__(self, run: RunDir) -> None:
        root = run.root.absolute()
        self._run = RunDir(root)
        self._missing = [path for path in (root, *root.parents) if not os.path.exists(path)]
        self._was_empty = root in self._missing
        with contextlib.suppress(OSError):  # `create` refuses what is no directory
            self._was_empty = self._was_empty or not os.listdir(root)

    def remove_if_nothing_ran(self) -> None:
        """Remove the files and directories of a new run in which no attempt has begun.

        An attempt whose program or script was not found counts as none. A directory in which
        anything was before the start, or has been made by others since, stays.
        """
        run = self._run
        if not self._was_empty or not self._nothing_ran():
            return
        disk = Disk()
        made = [p for attempt in self._attempts() for p in (*attempt.all_paths, attempt.root)]
        made += [path for path in run.all_paths if path.parent == run.root]
        # The lock comes last, so that no other start takes it in a directory that is half removed.
        for path in sorted(made, key=lambda path: path == run.lock_file):
            with contextlib.suppress(OSError):  # it is not there, or holds something else
                disk.remove(path, below=run.root)
        with contextlib.suppress(OSError):
            for folder in self._missing:
                os.rmdir(folder)

    def _nothing_ran(self) -> bool:
        run = self._run
        # What a script has left counts, whatever a journal says that a full disk has cut short.
        if os.path.exists(run.done_file) or os.path.exists(run.metrics_file):
            return False
        try:
            if os.listdir(run.checkpoints):
                return False
            events, damaged = Journal(run.journal_file).read()
        except (OSError, ConfigError):
            return False
        ends = [e.get("kind") for e in events if e["event"] == JournalEvent.ATTEMPT_EXITED]
        kinds = {event["event"] for event in events}
        if damaged or kinds & {JournalEvent.ATTEMPT_STARTED, JournalEvent.ATTEMPT_EXITED}:
            return not damaged and ends == [Kind.NEVER_STARTED]
        outputs = [attempt.output_file for attempt in self._attempts()]
        return not any(os.path.exists(path) and os.path.getsize(path) for path in outputs)

    def _attempts(self) -> list[AttemptDir]:
        """Return the directories of the first attempt's ranks, that of rank 0 last."""
        first = self._run.attempt(1)
        return [*(AttemptDir(path) for path in first.root.glob("rank-*")), first]
