"""What belongs to one life of the trainer: its process, its control page, what it reported."""

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass
from typing import Any

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.ipc.control_page import ControlPage, Field, Phase, anonymous_file
from orchestrator.ipc.messages import (
    ATTEMPT_VARIABLE,
    RESUME_VARIABLE,
)
from orchestrator.ipc.server import Peer
from orchestrator.rundir.paths import AttemptDir, RunDir
from orchestrator.snapshot.slots import Snapshot
from orchestrator.supervisor.attempt.memory_watch import MemoryWatch
from orchestrator.supervisor.attempt.output import open_output
from orchestrator.supervisor.attempt.trainer_process import Child
from orchestrator.supervisor.checkpoints.snapshot_writes import SnapshotWriteQueue
from orchestrator.supervisor.recovery.failure_budget import Place
from orchestrator.system.durable import write_json
from orchestrator.telemetry.trackers import mlflow_variables
from orchestrator.terminal.console import Sink


@dataclass
class AdoptedProgress:
    """How far a script has come that saves for itself: what it has saved, or was given.

    ``saved_after_stop``: all of a checkpoint was written after a stop was asked for.
    """

    step: int
    saved_after_stop: bool = False

    def saved(self, step: int, after_stop: bool) -> None:
        """It has saved a checkpoint, which may come to rest after a later one."""
        self.step = max(self.step, step)
        self.saved_after_stop = self.saved_after_stop or after_stop


class Attempt:
    """One attempt, from its directory to the end of its last process."""

    def __init__(
        self,
        run: RunDir,
        number: int,
        resume_from: Checkpoint | None,
        handed: Snapshot | None,
        snapshots: SnapshotWriteQueue,
        printed_to: Sink,
    ) -> None:
        """Prepare what a trainer needs, which ``begin`` is told of then. Raises OSError.

        ``handed`` is the snapshot that its session resumes from, newer than ``resume_from``.
        """
        self.number = number
        self.handed = handed
        self.left: Snapshot | None = None
        self.directory: AttemptDir = run.attempt(number)
        self._tracking = mlflow_variables(run, os.environ)
        self.resume_from = resume_from
        self.started = time.monotonic()
        self.ended: float | None = None
        self.peer: Peer | None = None
        self.connected = False
        self.refused_another = False
        """Whether there was a second session, at the same time or after."""
        self.adopted: AdoptedProgress | None = None
        self.resumed = False
        self.rejected = False
        self.session_pid: int | None = None
        self.hang: str | None = None
        """What it did when it was taken for hung, in words."""
        self.reported: int | None = None
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

    def begin(self, child: Child) -> None:
        """The trainer has been started."""
        self.child = child
        self.evidence = MemoryWatch(child.pid)

    @property
    def variables(self) -> dict[str, str]:
        """What its environment has beside the common one."""
        variables = {ATTEMPT_VARIABLE: str(self.number), **self._tracking}
        if self.resume_from is not None:
            variables[RESUME_VARIABLE] = str(self.resume_from.resume_path.absolute())
        return variables

    @property
    def descriptors(self) -> list[int]:
        """What the session is handed: page, snapshot memory, the output's keeper, stacks."""
        return [*self.memory, self.output.keeper, self.stacks_descriptor]

    @property
    def memory(self) -> list[int]:
        """The control page, and the snapshot memory whose table it has."""
        return [self._page_descriptor, *self._slot_descriptors]

    @property
    def resumed_step(self) -> int | None:
        """The step at which the session said that it had resumed, or an adopted script begins."""
        source = self._source
        resumed = self.resumed or self.adopted is not None
        return source.manifest.step if source and resumed else None

    @property
    def loading(self) -> Place | None:
        """The place of what its session is loading; None before and after that."""
        source = self._source
        if source is None or self.resumed or self.page.phase is not Phase.RESTORE:
            return None
        return source.manifest.step, source.manifest.epoch

    @property
    def _source(self) -> Snapshot | Checkpoint | None:
        return self.handed or self.resume_from

    @property
    def step(self) -> int:
        """Completed steps, as the trainer last wrote them, or saved them for itself."""
        return self.page.values[Field.STEP] if self.adopted is None else self.adopted.step

    @property
    def last_step(self) -> int:
        """The same, or what it was handed and had not restored yet."""
        return max(self.step, self.left.manifest.step if self.left else 0)

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self.page.values[Field.EPOCH]

    @property
    def lost_seconds(self) -> float | None:
        """How much training lies between the snapshot that is left and the last safe point."""
        if self.left is None:
            return None
        return max(0.0, (self.page.values[Field.HEARTBEAT_NS] - self.left.taken_ns) / 1e9)

    @property
    def reached_safe_point(self) -> bool:
        """Whether this attempt came as far as one safe point."""
        return self.page.values[Field.SAFE_POINTS] > 0

    @property
    def shows_saves(self) -> bool:
        """Whether we see what it saves, so that an end without a save has been in vain."""
        return self.connected or self.adopted is not None

    @property
    def since_safe_point_seconds(self) -> float | None:
        """How long before its end the last safe point was."""
        if not self.reached_safe_point or self.ended is None:
            return None
        return max(0.0, self.ended - self.page.values[Field.HEARTBEAT_NS] / 1e9)

    def error(self) -> dict[str, Any] | None:
        """What the session's process left in error.json; another process's says nothing of it."""
        error = self.directory.read_error()
        if error and self.session_pid and error.get("pid", self.session_pid) != self.session_pid:
            return None
        return error

    def record_end(self, **facts: Any) -> dict[str, Any]:
        """Write exit.json and return what it holds; seconds are the attempt's whole life."""
        returncode = self.returncode
        loading_step, loading_epoch = self.loading or (None, None)
        content = {
            "attempt": self.number,
            "status": returncode if returncode is not None and returncode >= 0 else None,
            "signal": -returncode if returncode is not None and returncode < 0 else None,
            "step": self.step,
            "epoch": self.epoch,
            "phase": None if self.adopted else self.page.phase.name.lower(),
            "reached_safe_point": self.reached_safe_point,
            "since_safe_point_seconds": _rounded(self.since_safe_point_seconds),
            "connected": self.shows_saves,
            "hang": self.hang,
            "resumed_step": self.resumed_step,
            "loading_step": loading_step,
            "loading_epoch": loading_epoch,
            "left_step": self.left.manifest.step if self.left else None,
            "left_epoch": self.left.manifest.epoch if self.left else None,
            "lost_seconds": _rounded(self.lost_seconds),
            "peak_memory_bytes": max(self.child.peak_bytes, self.evidence.peak_bytes),
            "memory_limit_bytes": self.evidence.memory_limit_bytes,
            "output_bytes_lost": self.output.lost_bytes,
            "seconds": _rounded((self.ended or time.monotonic()) - self.started),
            **facts,
        }
        # The journal holds the same; a full disk must not end the run.
        with contextlib.suppress(OSError):
            write_json(self.directory.exit_file, content)
        os.close(self._page_descriptor)
        os.close(self.stacks_descriptor)
        return content


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
