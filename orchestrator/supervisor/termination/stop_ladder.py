"""Ends an attempt on request: the three rungs of a stop, each with its deadline."""

import asyncio
import time

import structlog

from orchestrator.adopt.ongoing_saves import OngoingSaves
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import Field
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.trainer_process import KILL_WAIT_SECONDS
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.supervisor.state_machine import Event
from orchestrator.supervisor.termination import announcements, stack_dump
from orchestrator.supervisor.termination.announcements import Countdown
from orchestrator.system.races import first_of
from orchestrator.system.threads import ignore_outcome, in_thread
from orchestrator.telemetry.run_state import State

# A hung trainer has this long to write its stacks, and then this long to come back and save.
STACKS_SECONDS = stack_dump.ALL_ANSWERS_SECONDS + 2.0
COME_BACK_SECONDS = 3.0
# The part of its time that a script's save may take before the script gets the stop signal.
WAIT_FOR_SAVE_SHARE = 0.8
SAVE_POLL_SECONDS = 0.1


class StopLadder:
    """Climbs one rung with each request to stop, and to the last one when a deadline passes.

    1. The trainer saves at its next safe point and ends. It has the grace period, less the time
       for a write.
    2. It does not wait for the safe point: it is killed, unless it is saving. The deadline stays.
    3. Its whole process tree is killed. A process that is still there KILL_WAIT_SECONDS later is
       given up.

    Between two attempts there is nothing to end: what waits there reads the stop request.
    """

    def __init__(
        self,
        facts: RunFacts,
        snapshots: SnapshotWriteQueue,
        journal: Journal,
        countdown: Countdown,
        script_saves: OngoingSaves | None = None,
    ) -> None:
        """``script_saves`` are those of a script that saves for itself, None for a session."""
        self._facts = facts
        self._stop = facts.stop
        self._machine = facts.machine
        self._snapshots = snapshots
        self._journal = journal
        self._countdown = countdown
        self._script_saves = script_saves
        self._signalling: asyncio.Future[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._log = structlog.get_logger()

    # --- requests ----------------------------------------------------------------------------

    def on_signal(self, source: str) -> None:
        """Request a stop on a signal; one cause that sends two signals is one request."""
        if not self._stop.echoes.is_echo():
            self.request(source)

    def on_notice(self, source: str) -> None:
        """Request a stop on advance notice; ignored if one is under way."""
        if not self._stop.wanted.is_set():
            self.on_signal(source)

    def request(self, source: str) -> None:
        """Record the request, and climb one rung."""
        self._stop.record(source)
        self._journal.write(JournalEvent.STOP_REQUESTED, self._facts.attempt_number, source=source)
        if (attempt := self._facts.running_attempt) is not None:
            self._climb(attempt)

    # --- one attempt -------------------------------------------------------------------------

    def begin(self, attempt: Attempt) -> None:
        """Catch up with the requests that came between the choice of a checkpoint and the start."""
        if self._stop.wanted.is_set():
            self._climb(attempt)
        if self._stop.kill_wanted.is_set():
            self._machine.handle(Event.DEADLINE)
            self._kill(attempt, announcements.KILLING)

    def end(self) -> None:
        """Drop the deadline of an attempt that is over."""
        if self._signalling is not None:
            self._signalling.cancel()
        self._cancel_deadline()
        self._countdown.end()

    # --- the rungs ---------------------------------------------------------------------------

    def _climb(self, attempt: Attempt) -> None:
        match self._machine.handle(Event.STOP):
            case State.STOPPING:
                self._ask_to_save(attempt)
            case State.HURRYING:
                self._hurry(attempt)
            case State.KILLING:
                self._kill(attempt, announcements.KILLING)

    def _ask_to_save(self, attempt: Attempt) -> None:
        """Rung 1: save at the next safe point, and end."""
        # The snapshot in memory must be written within the grace period too.
        patience = self._stop.patience_seconds(self._snapshots.expected_write_seconds())
        announcements.announce_stop(str(self._stop.source), patience, attempt.has_session)
        self._countdown.begin(patience, attempt)
        self._send_stop(attempt, patience)

    def _hurry(self, attempt: Attempt) -> None:
        """Rung 2: wait only for a save that has begun."""
        if attempt.is_saving:
            self._log.info("a save is under way and may finish; one more signal: kill at once")
        else:
            self._machine.handle(Event.DEADLINE)
            self._kill(attempt, announcements.hurrying(attempt))

    def _kill(self, attempt: Attempt, why: str) -> None:
        """Rung 3: SIGKILL to the whole process tree."""
        self._log.warning(why, phase=attempt.phase.name.lower())
        attempt.kill()
        self._countdown.end()
        self._set_deadline(KILL_WAIT_SECONDS)

    def _on_deadline(self) -> None:
        attempt = self._facts.running_attempt
        if attempt is None or self._has_recovered(attempt):
            return
        why = announcements.late(attempt)
        if self._machine.handle(Event.DEADLINE) is State.KILLING:
            self._kill(attempt, why)
        else:
            self._log.error("SIGKILL does not end the trainer", pid=attempt.main.process.pid)
            attempt.over.set()

    # --- a hung trainer ----------------------------------------------------------------------

    def begin_hang(self) -> None:
        """Begin to end a hung trainer: it is killed when the deadline passes."""
        self._machine.handle(Event.HANG)
        self._set_deadline(STACKS_SECONDS + COME_BACK_SECONDS)

    def ask_hung_trainer_to_save(self, attempt: Attempt) -> None:
        """Ask it to save and end, in case it is only slow; its deadline is a new one."""
        if self._machine.state is not State.HUNG or self._has_recovered(attempt):
            return
        if self._script_saves is None:
            self._send_stop(attempt, min(COME_BACK_SECONDS, self._stop.grace_seconds))
        else:
            # No snapshot of it is in memory: what it cannot save is lost.
            self._set_deadline(self._stop.grace_seconds)
            attempt.main.process.ask_to_end()

    def _has_recovered(self, attempt: Attempt) -> bool:
        """Return whether a hung trainer has completed the training after all: no hang, then."""
        completed = attempt.reported_status == ExitStatus.COMPLETE
        if not (self._machine.allows(Event.RECOVERED) and completed):
            return False
        self._machine.handle(Event.RECOVERED)
        attempt.hang = None
        self._cancel_deadline()
        return True

    # --- the request to the trainer, and the deadline ----------------------------------------

    def _send_stop(self, attempt: Attempt, patience_seconds: float) -> None:
        self._set_deadline(patience_seconds)
        if self._script_saves is not None:
            after_save = self._ask_after_save(attempt, self._script_saves, patience_seconds)
            self._signalling = asyncio.ensure_future(after_save)
            ignore_outcome(self._signalling)
            return
        for rank in attempt.ranks:
            page = rank.page.values
            page[Field.STOP_DEADLINE_NS] = time.monotonic_ns() + int(patience_seconds * 1e9)
            page[Field.STOP_REQUEST] = 1
            if rank.peer is not None:
                rank.peer.send({"type": "stop"})
            else:
                # There is no session, not yet or no more: ask the command itself to end.
                rank.process.ask_to_end()

    async def _ask_after_save(
        self, attempt: Attempt, saves: OngoingSaves, patience_seconds: float
    ) -> None:
        """Signal a script that saves for itself, after the saves that are seen under way now.

        Those that follow are not waited for: a script may always be in one.
        """
        deadline = time.monotonic() + WAIT_FOR_SAVE_SHARE * patience_seconds
        if waits_for := await in_thread(saves.under_way):
            self._log.info("a save is under way: the stop signal is sent when it has ended")
        while waits_for and time.monotonic() < deadline and not _has_saved_since(attempt):
            await first_of(attempt.over.wait(), timeout_seconds=SAVE_POLL_SECONDS)
            waits_for &= await in_thread(saves.under_way)
        if not attempt.over.is_set():
            attempt.main.process.ask_to_end()

    def _set_deadline(self, seconds: float) -> None:
        self._cancel_deadline()
        self._deadline = asyncio.get_running_loop().call_later(seconds, self._on_deadline)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()


def _has_saved_since(attempt: Attempt) -> bool:
    """Return whether a script has begun and ended a save since the stop was requested."""
    return attempt.adopted is not None and attempt.adopted.saved_after_stop
