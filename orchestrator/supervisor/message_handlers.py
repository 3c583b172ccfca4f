"""Handles every message from the trainer and the command line.

docs/reference/process-contract.md defines the messages.
"""

import time
from typing import Any

from orchestrator.ipc.messages import Message
from orchestrator.ipc.server import Peer
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.spare.pool import SparePool
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.rank import Rank
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.supervisor.live_status import LiveStatus
from orchestrator.supervisor.run_events import RunEvents
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.supervisor.save_requests import SaveRequests
from orchestrator.supervisor.session_opening import SessionOpening
from orchestrator.supervisor.termination.stop_ladder import StopLadder

STOP_COMMAND = "orchestrator stop"


class CommandLineMessages:
    """Handles what `orchestrator status`, `stop` and `checkpoint` send."""

    def __init__(
        self, facts: RunFacts, status: LiveStatus, ladder: StopLadder, requests: SaveRequests
    ) -> None:
        self._stop = facts.stop
        self._status = status
        self._ladder = ladder
        self._requests = requests

    def handle(self, peer: Peer, message: Message) -> None:
        """Act on one message."""
        match message.get("type"):
            case "status":
                peer.send(self._status.status().to_json())
            case "stop":
                peer.send({"type": "stopping", "grace_seconds": self._stop.grace_seconds})
                # The command never climbs a second rung: a script and a person may both send it.
                self._ladder.on_notice(STOP_COMMAND)
            case "checkpoint" if self._stop.wanted.is_set():
                peer.send({"type": "failed", "problem": "the run is stopping, and saves for that"})
            case "checkpoint":
                self._requests.request(peer.send)


class TrainerMessages:
    """Handles what the session of the running attempt sends."""

    def __init__(
        self,
        facts: RunFacts,
        events: RunEvents,
        ladder: StopLadder,
        snapshots: SnapshotWriteQueue,
        spares: SparePool,
        journal: Journal,
    ) -> None:
        self._facts = facts
        self._trained_attempt: int | None = None
        self._events = events
        self._ladder = ladder
        self._snapshots = snapshots
        self._spares = spares
        self._journal = journal

    def handle(self, attempt: Attempt, rank: Rank, message: Message) -> None:
        """Act on one message from the session of one of the attempt's ranks."""
        facts = {key: value for key, value in message.items() if key != "type"}
        match message.get("type"):
            case "resumed":
                rank.resumed = True
                self._journal_of(rank, JournalEvent.RESUMED, attempt, facts)
            case "exactness_lost":
                self._journal_of(rank, JournalEvent.EXACTNESS_LOST, attempt, facts)
            case "stop_noticed":
                self._journal_of(rank, JournalEvent.STOP_NOTICED, attempt, facts)
                # A scheduler may have signalled the trainer alone: that is a stop too.
                if attempt.hang is None:
                    who = f"rank {rank.number}" if rank.number else "the trainer"
                    self._ladder.on_notice(f"{facts.get('source')} to {who}")
            case "skipped":
                attempt.skipped[facts.get("generation") or 0] = str(facts.get("problem"))
            case "published":
                self._events.checkpoint_published(str(facts.get("name")), facts)
            case "save_failed":
                self._events.save_failed(facts)
            case "snapshot":
                self._handle_snapshot(rank, facts)
            case "write":
                self._handle_write(rank, facts)
            case "modules" if rank.number == 0 and not self._facts.stop.wanted.is_set():
                if rank.launch_seconds is not None and not rank.process.from_spare:
                    self._spares.on_cold_start(rank.launch_seconds)
                self._spares.on_trainer_modules(
                    rank.directory.modules_file, rank.session_pid == rank.process.pid
                )
            case "refused":
                rank.refusal = facts.get("reason")
            case "rejected":
                rank.rejected_snapshot = True
            case "metrics":
                rank.metrics = facts.get("metrics") or {}
                if rank.number == 0:
                    self._facts.progress.on_report(attempt)
                    self._record_training(attempt)
            case "ended":
                self._handle_ended(attempt, rank, facts.get("status"))
            case "lost":  # the session has left, or its process has ended
                rank.close_session()
                if attempt.has_ended:
                    self._facts.record_exit(attempt)

    def _record_training(self, attempt: Attempt) -> None:
        """Journal, once, that the training of the attempt has begun."""
        if self._trained_attempt == attempt.number:
            return
        self._trained_attempt = attempt.number
        self._journal.write(
            JournalEvent.TRAINING_STARTED,
            attempt.number,
            step=attempt.start_step,
            starting_seconds=attempt.time_until(time.monotonic())["starting_seconds"],
        )

    def _journal_of(
        self, rank: Rank, event: JournalEvent, attempt: Attempt, facts: dict[str, Any]
    ) -> None:
        which = {"rank": rank.number} if len(attempt.ranks) > 1 else {}
        self._journal.write(event, attempt.number, **facts | which)

    def _handle_snapshot(self, rank: Rank, facts: dict[str, Any]) -> None:
        cost_seconds = facts.get("cost_seconds")
        self._snapshots.cost_seconds = cost_seconds or self._snapshots.cost_seconds
        rank.snapshot_facts = facts
        if rank.number == 0:
            self._events.snapshot_taken(facts)

    def _handle_write(self, rank: Rank, facts: dict[str, Any]) -> None:
        generation = facts.get("generation")
        if self._snapshots.write_generation(generation, str(facts.get("reason"))):
            return
        if rank.peer is not None:
            problem = "there is no such snapshot"
            rank.peer.send({"type": "write_failed", "generation": generation, "problem": problem})

    def _handle_ended(self, attempt: Attempt, rank: Rank, status: Any) -> None:
        rank.reported_status = status
        if rank.refused_second_session:
            attempt.withhold_completion(rank)


class MessageHandlers:
    """Gives each message to the part that handles it."""

    def __init__(
        self,
        facts: RunFacts,
        session_opening: SessionOpening,
        trainer: TrainerMessages,
        command_line: CommandLineMessages,
    ) -> None:
        self._facts = facts
        self._session_opening = session_opening
        self._trainer = trainer
        self._command_line = command_line

    async def handle(self, peer: Peer, message: Message) -> None:
        """Act on one message."""
        attempt = self._facts.attempt
        match message.get("type"):
            case "status" | "stop" | "checkpoint":
                self._command_line.handle(peer, message)
            case "hello":
                await self._session_opening.handle_hello(peer, message)
            case _ if attempt is not None and (rank := attempt.rank_of(peer)) is not None:
                self._trainer.handle(attempt, rank, message)
