"""One attempt at the training: its trainer processes, and what is known of all of them."""

import asyncio
import contextlib
import json
import os
import time
from dataclasses import dataclass

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.position import Position
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import Field, Phase, anonymous_file
from orchestrator.ipc.messages import ATTEMPT_VARIABLE, RESUME_PATHS_VARIABLE, RESUME_VARIABLE
from orchestrator.ipc.server import Peer
from orchestrator.ipc.training_time import training_time
from orchestrator.rundir.paths import AttemptDir, RunDir
from orchestrator.snapshot.slots import Snapshot
from orchestrator.supervisor.attempt.activity import Silence
from orchestrator.supervisor.attempt.output import OutputTarget
from orchestrator.supervisor.attempt.rank import Rank
from orchestrator.supervisor.attempt.rank_variables import free_port, rank_variables
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.system.process_tree import KillResult
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
        """Prepare what the trainers need; each rank's ``begin`` follows when it has started.

        A session resumes from ``resume_snapshot`` where there is one: it is then newer than
        ``resume_checkpoint``. Raises OSError.
        """
        self.number = number
        self.resume_checkpoint = resume_checkpoint
        self.resume_snapshot = resume_snapshot
        self.final_snapshot: Snapshot | None = None
        """After the end: the newest snapshot, if it is further than every checkpoint."""
        self.directory: AttemptDir = run.attempt(number)
        self._run = run
        self._tracking = mlflow_variables(run, os.environ)
        self.started = self.announced = time.monotonic()
        self.ended: float | None = None
        self.adopted: AdoptedProgress | None = None
        self.silence: Silence | None = None
        """How long it has shown no sign of life; None while that is not measured."""
        self.hang: str | None = None
        """What it was doing when it was considered hung, in words."""
        self.first_death: Rank | None = None
        """Of several ranks, the first that failed; the others were killed then."""
        self.hung: Rank | None = None
        """Of several ranks, the one that was behind the others when they were considered hung."""
        self.skipped: dict[int, str] = {}
        """The generations of which a rank has taken no snapshot, with the reason."""
        self.over = asyncio.Event()
        self.stacks_descriptor = anonymous_file("orchestrator-stacks")
        self.ranks = [
            Rank(rank, self.directory.rank(rank), snapshots, printed_to)
            for rank in range(snapshots.world_size)
        ]
        self._port = free_port() if len(self.ranks) > 1 else None

    def close(self) -> None:
        """Close the descriptors that only this attempt uses, after the end of its processes."""
        for rank in self.ranks:
            rank.close()
        os.close(self.stacks_descriptor)

    @property
    def main(self) -> Rank:
        """Rank 0, whose output is printed and whose metrics count."""
        return self.ranks[0]

    @property
    def behind(self) -> Rank:
        """The rank that has come least far."""
        return min(self.ranks, key=lambda rank: rank.place)

    @property
    def cause(self) -> Rank:
        """The rank whose end is the cause of the attempt's end; rank 0 if there is no such one.

        An exception of one rank ends its collectives, and so makes others fail after it, some of
        which may be gone before it is.
        """
        if self.first_death is None:
            return self.hung or self.main
        if self.first_death.error() is None:
            return self.first_death
        failed = [rank for rank in self.ranks if rank.error() is not None]
        return min(failed, key=lambda rank: str((rank.error() or {}).get("time")))

    def has_failed(self, rank: Rank) -> bool:
        """Return whether the end of one of several ranks is a failure of all."""
        if rank.reported_status in (ExitStatus.STOPPED_SAVED, ExitStatus.STOPPED_UNSAVED):
            return False
        if rank.reported_status == ExitStatus.COMPLETE or not self.connected:
            return rank.returncode != 0
        return True

    @property
    def has_ended(self) -> bool:
        """Whether every command has ended and every session has left."""
        return all(rank.is_over for rank in self.ranks)

    def kill(self) -> None:
        """Send SIGKILL to all processes of all ranks; do not wait for their end."""
        for rank in self.ranks:
            rank.process.kill_command()
        # Every rank is a descendant of this process, and so is what it has started.
        self.main.process.kill_tree()

    async def clean_up(self) -> KillResult:
        """End what the commands have left behind, after their own end, and copy the last output."""
        await asyncio.gather(*(rank.process.kill_group() for rank in self.ranks))
        remains = await self.main.process.kill_remains()
        remains.seen.update(rank.process.pid for rank in self.ranks)
        await asyncio.gather(*(rank.process.finish_output() for rank in self.ranks))
        return remains

    def rank_of(self, peer: Peer) -> Rank | None:
        """Return the rank with this connection."""
        return next((rank for rank in self.ranks if rank.peer is peer), None)

    def variables(self, rank: Rank) -> dict[str, str]:
        """Return a rank's environment variables, beside those that all attempts share."""
        variables = {ATTEMPT_VARIABLE: str(self.number), **self._tracking}
        if self._port is not None:
            variables |= rank_variables(rank.number, self.number, self._port)
        if self.resume_checkpoint is not None:
            variables[RESUME_VARIABLE] = str(self.resume_checkpoint.resume_path.absolute())
            if len(unit := self.resume_checkpoint.script_paths) > 1:
                paths = {name: str(path.absolute()) for name, path in unit.items()}
                variables[RESUME_PATHS_VARIABLE] = json.dumps(paths)
        return variables

    def session_descriptors(self, rank: Rank) -> list[int]:
        """Return the descriptors that a session gets: page, snapshot memory, output, stacks."""
        return [*rank.memory_descriptors, rank.output.read_descriptor, self.stacks_descriptor]

    @property
    def has_session(self) -> bool:
        """Whether a session is open."""
        return any(rank.peer is not None for rank in self.ranks)

    @property
    def connected(self) -> bool:
        """Whether a session has ever been opened."""
        return any(rank.connected for rank in self.ranks)

    @property
    def is_saving(self) -> bool:
        """Whether a trainer is saving."""
        return any(rank.page.phase is Phase.SAVE for rank in self.ranks)

    @property
    def phase(self) -> Phase:
        """The phase of the trainer."""
        return self.main.page.phase

    @property
    def reported_status(self) -> int | None:
        """The exit status that the session has announced; of several, what they amount to."""
        if self.first_death is not None:
            return self.cause.reported_status
        statuses = {rank.reported_status for rank in self.ranks}
        if None in statuses or len(statuses) == 1:
            return None if None in statuses else statuses.pop()
        unsaved = ExitStatus.STOPPED_UNSAVED
        return unsaved if unsaved in statuses else ExitStatus.STOPPED_SAVED

    @property
    def rejected_snapshot(self) -> bool:
        """Whether a session could not load the snapshot."""
        return any(rank.rejected_snapshot for rank in self.ranks)

    @property
    def refusal(self) -> str | None:
        """Why a session was refused, or why it refused to continue."""
        return next((rank.refusal for rank in self.ranks if rank.refusal is not None), None)

    def refuse(self, reason: str) -> None:
        """Record why a session of the command was refused."""
        self.main.refusal = reason

    @property
    def resumes(self) -> bool:
        """Whether there is something to resume from."""
        return self._source is not None

    @property
    def start_step(self) -> int:
        """The step of what this attempt is offered to resume from."""
        return self._source.manifest.step if self._source else 0

    @property
    def start_epoch(self) -> int:
        """The epoch of what this attempt is offered to resume from."""
        return self._source.manifest.epoch if self._source else 0

    @property
    def resumed_step(self) -> int | None:
        """The step from which the session has resumed, or from which an adopted script starts."""
        source = self._source
        resumed = self._has_resumed or self.adopted is not None
        return source.manifest.step if source and resumed else None

    @property
    def _has_resumed(self) -> bool:
        return all(rank.resumed for rank in self.ranks)

    @property
    def loading(self) -> Position | None:
        """The position of the state that the session is loading; None before and after that."""
        source = self._source
        if source is None or not any(map(_is_loading, self.ranks)):
            return None
        return source.manifest.position

    @property
    def _source(self) -> Snapshot | Checkpoint | None:
        return self.resume_snapshot or self.resume_checkpoint

    @property
    def step(self) -> int:
        """Completed steps: as the trainer last wrote them, or as an adopted script saved them."""
        return self.main.step if self.adopted is None else self.adopted.step

    @property
    def trained_steps(self) -> int:
        """The steps that this attempt has completed itself."""
        # A session shows the step that it resumes from before all ranks have resumed.
        return max(0, self.step - self.start_step)

    @property
    def last_step(self) -> int:
        """``step``, or that of a snapshot that the session got and had not restored yet."""
        return max(self.step, self.final_snapshot.manifest.step if self.final_snapshot else 0)

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self.main.page.values[Field.EPOCH]

    @property
    def lost_seconds(self) -> float | None:
        """The training time between the final snapshot and the last safe point."""
        if self.final_snapshot is None:
            return None
        lost_ns = self._heartbeat_ns - self.final_snapshot.taken_ns
        return max(0.0, lost_ns / 1e9)

    def time_until(self, moment: float) -> dict[str, float | None]:
        """Return what the time since the journal has its start was spent for."""
        return training_time(self.main.page, self.announced, moment)

    @property
    def _heartbeat_ns(self) -> int:
        return max(rank.page.values[Field.HEARTBEAT_NS] for rank in self.ranks)

    @property
    def reached_safe_point(self) -> bool:
        """Whether the trainer has reached a safe point."""
        return all(rank.reached_safe_point for rank in self.ranks)

    @property
    def shows_saves(self) -> bool:
        """Whether its saves are seen, so that an end without one counts as no progress."""
        return self.connected or self.adopted is not None

    @property
    def since_safe_point_seconds(self) -> float | None:
        """The time from the last safe point to the end."""
        if not self.reached_safe_point or self.ended is None:
            return None
        return max(0.0, self.ended - self._heartbeat_ns / 1e9)

    def withhold_completion(self, rank: Rank) -> None:
        """Let the first of several sessions not complete the run: another training follows.

        The script would otherwise be complete now, and by done.json when it is run again.
        """
        with contextlib.suppress(OSError):
            self._run.done_file.unlink(missing_ok=True)
        if rank.reported_status == ExitStatus.COMPLETE:
            rank.reported_status = ExitStatus.CONFIGURATION


def _is_loading(rank: Rank) -> bool:
    return not rank.resumed and rank.page.phase is Phase.RESTORE
