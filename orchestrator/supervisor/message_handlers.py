"""What the supervisor says to the trainer and to the command line, and does on their word."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import structlog

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.checkpoint_journal import CheckpointJournal
from orchestrator.checkpoint.store import Store
from orchestrator.config import Config
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import Field
from orchestrator.ipc.messages import PROTOCOL_VERSION, Message
from orchestrator.ipc.server import Peer
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.snapshot.slots import Snapshot
from orchestrator.spare.pool import SparePool
from orchestrator.supervisor.adoption import NO_SAVING_ON_DEMAND, NO_SESSION
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.checkpoints.catalog import CheckpointCatalog
from orchestrator.supervisor.checkpoints.snapshot_writes import SnapshotWriteQueue
from orchestrator.supervisor.state_machine import Event, StateMachine
from orchestrator.supervisor.termination.stop_ladder import CLOSING_SHARE, StopWantedError, Watch
from orchestrator.telemetry.status import Status, describe_checkpoint

SECOND_SESSION = (
    "a run is one training, and its command has opened a session already; give each training a "
    "command and a run of its own (`orchestrator run --run-dir ...`), or run the script without a "
    "supervisor and with a run_dir for each Session or OrchestratorCallback"
)
ROTATION_WAIT_SECONDS = 60.0


class Conversation:
    """Handles every message of docs/reference/process-contract.md."""

    def __init__(
        self,
        config: Config,
        command: list[str],
        store: Store,
        journal: Journal,
        machine: StateMachine,
        watch: Watch,
        checkpoints: CheckpointCatalog,
        snapshots: SnapshotWriteQueue,
        spares: SparePool,
        restarts: int,
    ) -> None:
        self.restarts = restarts
        self._config = config
        self._command = command
        self._store = store
        self._journal = journal
        self._checkpoint_journal = CheckpointJournal(journal)
        self._machine = machine
        self._watch = watch
        self._checkpoints = checkpoints
        self._snapshots = snapshots
        self._spares = spares
        self._snapshot_interval: float | None = None
        self._log = structlog.get_logger()
        self._rotations: set[asyncio.Task[None]] = set()
        self._waiting_for_checkpoint: list[Callable[[Message], None]] = []
        self._grace_checked = False
        self._problem: str | None = None

    async def receive(self, peer: Peer, message: Message) -> None:
        """Act on one message."""
        attempt = self._watch.attempt
        match message.get("type"):
            case "status":
                peer.send(self.status().to_json())
            case "stop":
                peer.send({"type": "stopping", "grace_seconds": self._config.grace})
                # Asking twice is not insisting: a script may ask, and a person beside it.
                self._watch.notice("orchestrator stop")
            case "checkpoint" if self._watch.stop_wanted.is_set():
                peer.send({"type": "failed", "problem": "the run is stopping, and saves for that"})
            case "checkpoint":
                self._waiting_for_checkpoint.append(peer.send)
                self.request_checkpoint()
            case "hello" if self._config.adopt is not None:
                peer.send({"type": "refused", "reason": NO_SESSION})
            case "hello" if attempt is not None:
                self._welcome(attempt, peer, message)
            case kind if attempt is not None and peer is attempt.peer:
                self._hear_trainer(attempt, str(kind), message)

    def _welcome(self, attempt: Attempt, peer: Peer, message: Message) -> None:
        if attempt.over.is_set() or str(message.get("attempt")) != str(attempt.number):
            peer.send({"type": "refused", "reason": "the attempt that it belongs to is over"})
            return
        if attempt.connected:
            self._refuse_second_session(attempt, peer)
            return
        attempt.peer, attempt.connected = peer, True
        attempt.session_pid = message.get("pid")
        peer.send(
            {
                "type": "welcome",
                "protocol": PROTOCOL_VERSION,
                "run_id": self._store.run_id,
                "command": self._command,
                "every": asdict(self._config.every),
                "snapshot_budget": self._config.snapshot_budget,
                "snapshot_interval_seconds": self._snapshot_interval,
                "allow_data_change": self._config.allow_data_change,
                "resume_generation": attempt.handed.generation if attempt.handed else None,
                "writing_generations": [s.generation for s in self._snapshots.under_way],
                "grace_seconds": self._config.grace,
            },
            attempt.descriptors,
        )
        self._machine.handle(Event.CONNECTED)

    def _refuse_second_session(self, attempt: Attempt, peer: Peer) -> None:
        attempt.refused_another = True
        self._withhold_completion(attempt)  # before the answer may end the trainer
        peer.send({"type": "refused", "reason": SECOND_SESSION})

    def _withhold_completion(self, attempt: Attempt) -> None:
        # A script that trains more than once is not complete with the first: neither now nor, by
        # done.json, when its command is run again.
        with contextlib.suppress(OSError):
            self._store.run.done_file.unlink(missing_ok=True)
        if attempt.reported == ExitStatus.COMPLETE:
            attempt.reported = ExitStatus.CONFIGURATION

    def _hear_trainer(self, attempt: Attempt, kind: str, message: Message) -> None:
        facts = {key: value for key, value in message.items() if key != "type"}
        match kind:
            case "resumed":
                attempt.resumed = True
                self._journal.write(JournalEvent.RESUMED, attempt.number, **facts)
            case "exactness_lost":
                self._journal.write(JournalEvent.EXACTNESS_LOST, attempt.number, **facts)
            case "stop_noticed":
                self._journal.write(JournalEvent.STOP_NOTICED, attempt.number, **facts)
                # A scheduler may have signalled the trainer alone: that too is a stop.
                if attempt.hang is None:
                    self._watch.notice(f"{facts.get('source')} to the trainer")
            case "published":
                self.published(str(facts.get("name")), facts)
            case "save_failed":
                self.alarm(facts)
            case "snapshot":
                self._hear_snapshot(attempt, facts)
            case "write":
                generation, reason = facts.get("generation"), str(facts.get("reason"))
                if not self._snapshots.write_generation(generation, reason):
                    problem = "there is no such snapshot"
                    self._tell_trainer(type="write_failed", generation=generation, problem=problem)
            case "modules" if not self._watch.stop_wanted.is_set():
                self._spares.on_trainer_modules(
                    attempt.directory.modules_file, attempt.session_pid == attempt.child.pid
                )
            case "rejected":
                attempt.rejected = True
            case "metrics":
                attempt.metrics = facts.get("metrics", {})
            case "ended":
                attempt.reported = facts.get("status")
                if attempt.refused_another:
                    self._withhold_completion(attempt)
            case "lost":
                self._watch.trainer_lost(attempt)

    def _hear_snapshot(self, attempt: Attempt, facts: dict[str, Any]) -> None:
        attempt.snapshot_facts = facts
        self._snapshot_interval = facts.get("interval_seconds") or self._snapshot_interval
        self._checkpoint_journal.record_snapshot(facts, attempt.number)

    def written(self, snapshot: Snapshot, checkpoint: Checkpoint, seconds: float) -> None:
        """A snapshot has become a checkpoint."""
        self.published(checkpoint.name, {"seconds": seconds})
        self._tell_trainer(
            type="written", generation=snapshot.generation, name=checkpoint.name, seconds=seconds
        )

    def write_failed(self, snapshot: Snapshot, problem: str) -> None:
        """A snapshot could not be written."""
        self.alarm({"step": snapshot.manifest.step, "problem": problem})
        self._tell_trainer(type="write_failed", generation=snapshot.generation, problem=problem)

    def _tell_trainer(self, **message: Any) -> None:
        attempt = self._watch.attempt
        if attempt is not None and attempt.peer is not None:
            attempt.peer.send(message)

    def alarm(self, facts: dict[str, Any]) -> None:
        """A save has failed: tell everybody."""
        attempt = self._watch.attempt
        self._problem = str(facts.get("problem"))
        self._checkpoint_journal.record_failure(
            self._problem,
            attempt.number if attempt else None,
            step=facts.get("step"),
            adopted=facts.get("adopted"),
        )
        self._log.error(self._problem)
        self._answer_waiting({"type": "failed", **facts})

    def published(self, name: str, facts: dict[str, Any]) -> None:
        """A checkpoint is there: tell everybody, and rotate."""
        seconds = facts.get("seconds")
        checkpoint = self._checkpoints.published(name, seconds=seconds)
        if checkpoint is None:
            return
        self._problem = None
        self._log.info(
            "checkpoint", step=checkpoint.manifest.step, reason=checkpoint.manifest.reason.value
        )
        self._answer_waiting({"type": "published", "path": str(checkpoint.shown_path)})
        self._warn_of_short_grace(seconds)
        rotation = asyncio.ensure_future(self._checkpoints.rotate())
        self._rotations.add(rotation)
        rotation.add_done_callback(self._rotations.discard)

    async def rotations_end(self) -> None:
        """Wait for the rotations that are under way, at most so long."""
        if self._rotations:
            await asyncio.wait(self._rotations, timeout=ROTATION_WAIT_SECONDS)

    async def rotations_end_or_stop(self) -> None:
        """The same for a write: when a stop comes, the state of now needs its slot."""
        with contextlib.suppress(StopWantedError):
            await self._watch.unless_stopped(self.rotations_end())

    def _warn_of_short_grace(self, save_seconds: Any) -> None:
        if self._grace_checked or not isinstance(save_seconds, float):
            return
        self._grace_checked = True
        if save_seconds > self._config.grace * (1 - CLOSING_SHARE):
            self._log.warning(
                f"saving takes {save_seconds:.1f} s and --grace is {self._config.grace:g} s: a "
                "stop would not have the time to save; raise --grace, and what the host allows"
            )

    def request_checkpoint(self) -> None:
        """Have the trainer save at its next safe point."""
        if self._config.adopt is not None:
            self._log.warning(NO_SAVING_ON_DEMAND)
            self._answer_waiting({"type": "failed", "problem": NO_SAVING_ON_DEMAND})
        elif self._watch.attempt is None or self._watch.attempt.over.is_set():
            self._answer_waiting({"type": "failed", "problem": "no trainer is running now"})
        else:
            self._watch.attempt.page.values[Field.CHECKPOINT_REQUESTS] += 1

    async def save_now(self) -> Message:
        """The same, and what came of it: ``published`` or ``failed``."""
        outcome: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def answer(message: Message) -> None:
            if not outcome.done():
                outcome.set_result(message)

        self._waiting_for_checkpoint.append(answer)
        self.request_checkpoint()
        return await outcome

    def _answer_waiting(self, message: Message) -> None:
        for answer in self._waiting_for_checkpoint:
            answer(message)
        self._waiting_for_checkpoint.clear()

    def status(self) -> Status:
        """How the run is at this moment."""
        attempt = self._watch.attempt
        newest = self._checkpoints.newest
        status = Status(
            run_id=self._store.run_id, state=self._machine.state, run_dir=str(self._store.run.root)
        )
        status.supervisor_pid = os.getpid()
        status.restarts = self.restarts
        status.problem = self._problem
        status.spare_pid, status.spare = self._spares.pid, self._spares.status()
        status.newest_checkpoint = describe_checkpoint(newest) if newest else None
        if attempt is not None:
            status.attempt = attempt.number
            status.metrics = attempt.metrics
            if attempt.shows_saves:
                status.step, status.epoch = attempt.step, attempt.epoch
            status.snapshots = self._snapshot_facts(attempt)
            if self._snapshots.slots and (
                newest_snapshot := self._snapshots.slots.newest_step_and_age()
            ):
                step, age = newest_snapshot
                status.newest_snapshot = {"step": step, "age_seconds": round(age, 3)}
            if (silence := self._watch.silence) is not None:
                status.phase = silence.activity
                status.silent_seconds = round(silence.seconds, 3)
                status.hang_budget_seconds = silence.budget_seconds
            if not attempt.over.is_set():
                status.trainer_pid = attempt.child.pid
                kept = filter(None, (status.newest_checkpoint, status.newest_snapshot))
                ages = [time.monotonic() - attempt.started, *(k["age_seconds"] for k in kept)]
                status.lose_at_most_seconds = round(min(ages), 3)
        return status

    def _snapshot_facts(self, attempt: Attempt) -> dict[str, Any] | None:
        if not attempt.snapshot_facts:
            return None
        shown = ("interval_seconds", "stall_seconds", "bytes")
        facts = {key: attempt.snapshot_facts.get(key) for key in shown}
        return facts | {"write_seconds": self._snapshots.last_write_seconds or None}
