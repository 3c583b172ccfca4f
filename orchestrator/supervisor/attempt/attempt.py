"""One attempt at the training: its process, its control page, and what its session has reported."""

import asyncio
import contextlib
import json
import os
import time
from dataclasses import dataclass
from typing import Any

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.position import Position
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import ControlPage, Field, Phase, anonymous_file
from orchestrator.ipc.messages import ATTEMPT_VARIABLE, RESUME_PATHS_VARIABLE, RESUME_VARIABLE
from orchestrator.ipc.server import Peer
from orchestrator.rundir.paths import AttemptDir, RunDir
from orchestrator.snapshot.slots import Snapshot
from orchestrator.supervisor.attempt.activity import Silence
from orchestrator.supervisor.attempt.memory_watch import MemoryWatch
from orchestrator.supervisor.attempt.output import OutputTarget, open_output
from orchestrator.supervisor.attempt.trainer_process import TrainerProcess
from orchestrator.supervisor.checkpoints.snapshot_writes import SnapshotWriteQueue
from orchestrator.telemetry.trackers import mlflow_variables


@dataclass
class AdoptedProgress:
    """The progress of a script that saves for itself: the step of what it has saved or resumed.

    ``saves`` counts its own checkpoints. ``saved_after_stop``: all of a checkpoint was written
    after a stop was requested. ``is_unread``: it saves, and has not opened what it was offered.
    ``file_changes`` counts how often files that the pattern may match were seen to change.
    """

    step: int
    saved_after_stop: bool = False
    saves: int = 0
    is_unread: bool = False
    file_changes: int = 0

    def record_save(self, step: int, after_stop: bool) -> None:
        """Record a checkpoint; an earlier one may settle after a later one."""
        self.saves += 1
        self.step = max(self.step, step)
        self.saved_after_stop = self.saved_after_stop or after_stop


class Attempt:
    """One attempt, from its directory to the end of its last process."""

    def __init__(
        self,
        run: RunDir,
        number: int,
        resume_checkpoint: Checkpoint | None,
        resume_snapshot: Snapshot | None,
        snapshots: SnapshotWriteQueue,
        printed_to: OutputTarget,
    ) -> None:
        """Prepare what a trainer needs; ``begin`` follows when it has started. Raises OSError.

        A session resumes from ``resume_snapshot`` where there is one: it is then newer than
        ``resume_checkpoint``.
        """
        self.number = number
        self.resume_checkpoint = resume_checkpoint
        self.resume_snapshot = resume_snapshot
        self.final_snapshot: Snapshot | None = None
        """After the end: the newest snapshot, if it is further than every checkpoint."""
        self.directory: AttemptDir = run.attempt(number)
        self._run = run
        self._tracking = mlflow_variables(run, os.environ)
        self.started = time.monotonic()
        self.ended: float | None = None
        self.peer: Peer | None = None
        """The session's connection, while it is open."""
        self.connected = False
        """Whether a session has ever been opened."""
        self.launch_seconds: float | None = None
        """How long it took from the start of the command to the session's opening."""
        self.session_pid: int | None = None
        self.refused_second_session = False
        """Whether the command tried to open a second session, beside the first or after it."""
        self.refusal: str | None = None
        """Why a session was refused, or why it refused to continue."""
        self.adopted: AdoptedProgress | None = None
        self.resumed = False
        self.rejected_snapshot = False
        """Whether the session could not load the snapshot."""
        self.silence: Silence | None = None
        """How long it has shown no sign of life; None while that is not measured."""
        self.hang: str | None = None
        """What it was doing when it was considered hung, in words."""
        self.reported_status: int | None = None
        """The exit status that the session has announced."""
        self.returncode: int | None = None
        self.metrics: dict[str, float | str] = {}
        self.snapshot_facts: dict[str, Any] = {}
        self.over = asyncio.Event()
        # A full disk costs the records of this attempt and not the training.
        with contextlib.suppress(OSError):
            self.directory.root.mkdir(parents=True, exist_ok=True)
        self.page, self._page_descriptor = ControlPage.create()
        self._slot_descriptors = snapshots.attach(self.page)
        self.stacks_descriptor = anonymous_file("orchestrator-stacks")
        self.output = open_output(self.directory.output_file, printed_to)

    def begin(self, process: TrainerProcess) -> None:
        """Record that the trainer has started."""
        self.process = process
        self.memory_watch = MemoryWatch(process.pid)

    def close(self) -> None:
        """Close the descriptors that only this attempt uses, after the end of its processes."""
        os.close(self._page_descriptor)
        os.close(self.stacks_descriptor)

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of this attempt, beside those that all attempts share."""
        variables = {ATTEMPT_VARIABLE: str(self.number), **self._tracking}
        if self.resume_checkpoint is not None:
            variables[RESUME_VARIABLE] = str(self.resume_checkpoint.resume_path.absolute())
            if len(unit := self.resume_checkpoint.script_paths) > 1:
                paths = {name: str(path.absolute()) for name, path in unit.items()}
                variables[RESUME_PATHS_VARIABLE] = json.dumps(paths)
        return variables

    @property
    def session_descriptors(self) -> list[int]:
        """The descriptors that a session gets: page, snapshot memory, output, stacks."""
        return [*self.memory_descriptors, self.output.read_descriptor, self.stacks_descriptor]

    @property
    def memory_descriptors(self) -> list[int]:
        """The control page, and the snapshot memory whose table it holds."""
        return [self._page_descriptor, *self._slot_descriptors]

    @property
    def start_step(self) -> int:
        """The step of what this attempt is offered to resume from."""
        return self._source.manifest.step if self._source else 0

    @property
    def resumed_step(self) -> int | None:
        """The step from which the session has resumed, or from which an adopted script starts."""
        source = self._source
        resumed = self.resumed or self.adopted is not None
        return source.manifest.step if source and resumed else None

    @property
    def loading(self) -> Position | None:
        """The position of the state that the session is loading; None before and after that."""
        source = self._source
        if source is None or self.resumed or self.page.phase is not Phase.RESTORE:
            return None
        return source.manifest.position

    @property
    def _source(self) -> Snapshot | Checkpoint | None:
        return self.resume_snapshot or self.resume_checkpoint

    @property
    def step(self) -> int:
        """Completed steps: as the trainer last wrote them, or as an adopted script saved them."""
        return self.page.values[Field.STEP] if self.adopted is None else self.adopted.step

    @property
    def last_step(self) -> int:
        """``step``, or that of a snapshot that the session got and had not restored yet."""
        return max(self.step, self.final_snapshot.manifest.step if self.final_snapshot else 0)

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self.page.values[Field.EPOCH]

    @property
    def lost_seconds(self) -> float | None:
        """The training time between the final snapshot and the last safe point."""
        if self.final_snapshot is None:
            return None
        lost_ns = self.page.values[Field.HEARTBEAT_NS] - self.final_snapshot.taken_ns
        return max(0.0, lost_ns / 1e9)

    @property
    def reached_safe_point(self) -> bool:
        """Whether the trainer has reached a safe point."""
        return self.page.values[Field.SAFE_POINTS] > 0

    @property
    def shows_saves(self) -> bool:
        """Whether its saves are seen, so that an end without one counts as no progress."""
        return self.connected or self.adopted is not None

    @property
    def since_safe_point_seconds(self) -> float | None:
        """The time from the last safe point to the end."""
        if not self.reached_safe_point or self.ended is None:
            return None
        return max(0.0, self.ended - self.page.values[Field.HEARTBEAT_NS] / 1e9)

    def error(self) -> dict[str, Any] | None:
        """Return the exception in error.json; None if another process wrote it."""
        error = self.directory.read_error()
        if error and self.session_pid and error.get("pid", self.session_pid) != self.session_pid:
            return None
        return error

    def withhold_completion(self) -> None:
        """Let the first of several sessions not complete the run: another training follows.

        The script would otherwise be complete now, and by done.json when it is run again.
        """
        with contextlib.suppress(OSError):
            self._run.done_file.unlink(missing_ok=True)
        if self.reported_status == ExitStatus.COMPLETE:
            self.reported_status = ExitStatus.CONFIGURATION
