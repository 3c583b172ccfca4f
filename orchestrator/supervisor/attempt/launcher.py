"""Starts an attempt: from the spare where there is one, else cold."""

from collections.abc import Callable, Collection, Mapping

import structlog

from orchestrator.adopt.resume_argument import ResumeArgument
from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import RunDir
from orchestrator.snapshot.slots import Snapshot
from orchestrator.spare.pool import SparePool
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.trainer_process import Child, start_cold
from orchestrator.supervisor.checkpoints.catalog import CheckpointCatalog
from orchestrator.supervisor.checkpoints.fdstore import FdStore
from orchestrator.supervisor.checkpoints.snapshot_writes import SnapshotWriteQueue
from orchestrator.terminal.console import Sink


class Starter:
    """Starts the attempts of a run, one after the other."""

    def __init__(
        self,
        run: RunDir,
        command: list[str],
        resume_argument: ResumeArgument,
        lock_descriptor: int,
        printed_to: Sink,
        journal: Journal,
        checkpoints: CheckpointCatalog,
        snapshots: SnapshotWriteQueue,
        spares: SparePool,
        heritage: FdStore,
        not_the_trainers: Callable[[], Collection[int]],
    ) -> None:
        """``not_the_trainers``: processes below us that do not end with an attempt."""
        self._run = run
        self._command = command
        self._resume_argument = resume_argument
        self._lock_descriptor = lock_descriptor
        self._printed_to = printed_to
        self._journal = journal
        self._checkpoints = checkpoints
        self._snapshots = snapshots
        self._spares = spares
        self._heritage = heritage
        self._not_the_trainers = not_the_trainers

    async def start(self, environment: Mapping[str, str], handed: Snapshot | None) -> Attempt:
        """Start the next attempt. Raises OSError, and ConfigError where the command cannot run.

        It resumes from ``handed``, or else from the checkpoint that was chosen.
        """
        number, resume_from = 1 + self._last_number(), self._checkpoints.resumed_from
        attempt = Attempt(self._run, number, resume_from, handed, self._snapshots, self._printed_to)
        self._heritage.leave(number, *attempt.memory)
        variables, output = attempt.variables, attempt.output
        process = await self._spares.make_trainer(
            variables, output.descriptor, self._lock_descriptor
        )
        warm = process is not None
        if process is None:
            command = [*self._command, *self._resume_words(resume_from)]
            process = start_cold(
                command, {**environment, **variables}, output, self._lock_descriptor
            )
        attempt.begin(Child(process, output, self._not_the_trainers))
        self._checkpoints.attempt = number
        self._tell(attempt, warm)
        return attempt

    def _resume_words(self, checkpoint: Checkpoint | None) -> list[str]:
        if checkpoint is None:
            return []
        adopted = checkpoint.manifest.adopted
        step = checkpoint.manifest.step if adopted and adopted.numbered else None
        return self._resume_argument.words(checkpoint.resume_path, step)

    def _tell(self, attempt: Attempt, warm: bool) -> None:
        handed, resume_from = attempt.handed, attempt.resume_from
        source = handed or resume_from
        self._journal.write(
            JournalEvent.ATTEMPT_STARTED,
            attempt.number,
            pid=attempt.child.pid,
            resume_step=source.manifest.step if source else None,
            from_memory=handed is not None,
            from_spare=warm,
        )
        structlog.get_logger().info(
            "training started",
            attempt=attempt.number,
            pid=attempt.child.pid,
            resume_from=(
                f"the snapshot of step {handed.manifest.step}"
                if handed
                else resume_from and resume_from.shown_path.name
            ),
            run_dir=str(self._run.root),
        )

    def _last_number(self) -> int:
        names = (path.name for path in self._run.attempts.iterdir())
        on_disk = max((int(name) for name in names if name.isdecimal()), default=0)
        # On a full disk the last one has left no directory.
        return max(on_disk, self._checkpoints.attempt or 0)
