"""Watches an attempt to its end: the ladder of a stop, its deadlines, the exit of the command."""

import asyncio
import time
from collections.abc import Callable

import structlog

from orchestrator.journal import Journal, JournalEvent
from orchestrator.page import Field, Phase
from orchestrator.supervisor.attempt import Attempt
from orchestrator.supervisor.child import KILL_WAIT_SECONDS
from orchestrator.supervisor.states import Event, Machine, State

# Of the grace period, what ending the processes and writing the last records may take.
CLOSING_SECONDS = 2.0
CLOSING_SHARE = 0.2
# Of the grace period, what is left for the safe point however long a write may take.
LEAST_PATIENCE_SHARE = 0.3
# A stop signal of this rank waits for nothing any more.
LAST_RUNG = 3
# A dying process closes its socket an instant before or after its exit is seen.
LAST_WORDS_SECONDS = 1.0


class Watch:
    """Moves the machine while a trainer runs.

    ``stop_wanted`` is set for good by the first stop, ``kill_wanted`` by the third.
    """

    def __init__(
        self,
        machine: Machine,
        grace_seconds: float,
        write_allowance_seconds: Callable[[], float],
        journal: Journal,
    ) -> None:
        self.attempt: Attempt | None = None
        self.stop_wanted = asyncio.Event()
        self.kill_wanted = asyncio.Event()
        self.stop_source: str | None = None
        self._requests = 0
        self._write_allowance_seconds = write_allowance_seconds
        self._machine = machine
        self._grace_seconds = grace_seconds
        self._journal = journal
        self._log = structlog.get_logger()
        self._deadline: asyncio.TimerHandle | None = None

    async def until_over(self, attempt: Attempt) -> None:
        """Wait until the attempt has ended or was given up as unkillable."""
        self.attempt = attempt
        if self.stop_wanted.is_set():
            # It came between the choice of the checkpoint and the start.
            self._begin_stop(attempt)
        waiter = asyncio.ensure_future(self._wait_for_command(attempt))
        await attempt.over.wait()
        waiter.cancel()
        self._cancel_deadline()

    async def _wait_for_command(self, attempt: Attempt) -> None:
        attempt.returncode = await attempt.child.wait()
        if attempt.peer is not None:
            await asyncio.sleep(LAST_WORDS_SECONDS)
        if attempt.peer is None:
            self._end_attempt(attempt)
        elif self._machine.state in (State.STARTING, State.TRAINING):
            # The command was a shell, say, that a signal ended, while its trainer runs on.
            self.request_stop("the end of the shell around the trainer")

    def trainer_lost(self, attempt: Attempt) -> None:
        """The session's connection has closed: it has left, or its process has ended."""
        attempt.peer = None
        if attempt.returncode is not None:
            self._end_attempt(attempt)

    def _end_attempt(self, attempt: Attempt) -> None:
        if not attempt.over.is_set():
            self._machine.handle(Event.EXITED)
            attempt.over.set()

    def request_stop(self, source: str) -> None:
        """Climb one rung: save and stop, then no more waiting for the safe point, then kill."""
        self.stop_source = self.stop_source or source
        self.stop_wanted.set()
        self._requests += 1
        if self._requests >= LAST_RUNG:
            self.kill_wanted.set()
        attempt = self.attempt
        self._journal.write(
            JournalEvent.STOP_REQUESTED, attempt.number if attempt else None, source=source
        )
        if attempt is None or attempt.over.is_set():
            return  # between attempts: whoever waits there sees the flag
        if self._machine.state in (State.STARTING, State.TRAINING):
            self._begin_stop(attempt)
        elif self._machine.handle(Event.STOP) is State.HURRYING:
            self._hurry(attempt)
        else:
            self._kill(attempt, "killing everything now")

    def _begin_stop(self, attempt: Attempt) -> None:
        self._machine.handle(Event.STOP)
        grace = self._grace_seconds
        patience = grace - min(CLOSING_SECONDS, CLOSING_SHARE * grace)
        # What is in memory then has to be written within the grace period too.
        patience = max(LEAST_PATIENCE_SHARE * grace, patience - self._write_allowance_seconds())
        self._set_deadline(patience)
        page = attempt.page.values
        page[Field.STOP_DEADLINE_NS] = time.monotonic_ns() + int(patience * 1e9)
        page[Field.STOP_REQUEST] = 1
        self._log.info(
            f"stopping on {self.stop_source}: saving at the next safe point, which may take up to "
            f"{grace:g} s. Again: do not wait for the safe point. A third time: kill at once"
        )
        if attempt.peer is not None:
            attempt.peer.send({"type": "stop"})
        else:
            # No session, not yet or no more: the command itself, not its group, is asked to end.
            attempt.child.terminate()

    def _hurry(self, attempt: Attempt) -> None:
        if attempt.page.phase is Phase.SAVE:
            self._log.info("a save is under way and may finish; once more: kill at once")
        else:
            self._machine.handle(Event.DEADLINE)
            self._kill(attempt, "not waiting for the safe point")

    def _kill(self, attempt: Attempt, why: str) -> None:
        self._log.warning(why, phase=attempt.page.phase.name.lower())
        attempt.child.kill_tree()
        self._set_deadline(KILL_WAIT_SECONDS)

    def _set_deadline(self, seconds: float) -> None:
        self._cancel_deadline()
        self._deadline = asyncio.get_running_loop().call_later(seconds, self._deadline_passed)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _deadline_passed(self) -> None:
        attempt = self.attempt
        if attempt is None or attempt.over.is_set():
            return
        if self._machine.state is State.KILLING:
            self._log.error("the trainer does not end even when killed", pid=attempt.child.pid)
            self._end_attempt(attempt)
            return
        self._machine.handle(Event.DEADLINE)
        self._kill(attempt, "the safe point or the save did not come in time")
