"""Watches an attempt to its end: the ladders of a stop and of a hang, the exit of the command."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog

from orchestrator.errors import NoThreadError
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import Field, Phase
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.trainer_process import KILL_WAIT_SECONDS
from orchestrator.supervisor.state_machine import Event, StateMachine
from orchestrator.supervisor.termination import announcements, stack_dump
from orchestrator.supervisor.termination.announcements import Countdown
from orchestrator.supervisor.termination.hang_budgets import (
    TICK_SECONDS,
    Activity,
    HangClock,
    HangTimeouts,
    Silence,
    sign_of,
)
from orchestrator.system import process_tree
from orchestrator.system.stop_signals import EchoFilter
from orchestrator.system.threads import ignore_outcome, in_thread
from orchestrator.telemetry.run_state import State

# Of the grace period, what ending the processes and writing the last records may take.
CLOSING_SECONDS = 2.0
CLOSING_SHARE = 0.2
# Of the grace period, what is left for the safe point however long a write may take.
LEAST_PATIENCE_SHARE = 0.3
# A stop signal of this rank waits for nothing any more.
LAST_RUNG = 3
# A dying process closes its socket an instant before or after its exit is seen.
LAST_WORDS_SECONDS = 1.0
# A hung trainer has so long to write its stacks down, and then to come back after all and save.
STACKS_SECONDS = stack_dump.ALL_ANSWERS_SECONDS + 2.0
COME_BACK_SECONDS = 3.0

T = TypeVar("T")


class StopWantedError(Exception):
    """A stop came while something else was waited for."""


class Watch:
    """Moves the machine while a trainer runs.

    ``stop_wanted`` is set for good by the first stop, ``kill_wanted`` by the third. ``silence`` is
    how long the trainer has shown no sign of life.
    """

    def __init__(
        self,
        machine: StateMachine,
        grace_seconds: float,
        stop_signal: signal.Signals,
        budgets: HangTimeouts,
        write_allowance_seconds: Callable[[], float],
        is_writing: Callable[[], bool],
        journal: Journal,
        echoes: EchoFilter,
        countdown: Countdown,
    ) -> None:
        """``stop_signal`` is for a command without a session.

        ``is_writing``: whether we write a snapshot to disk, which a saving trainer waits for.
        """
        self.attempt: Attempt | None = None
        self.stop_wanted = asyncio.Event()
        self.kill_wanted = asyncio.Event()
        self.stop_source: str | None = None
        self.stop_wanted_ns: int | None = None
        self.silence: Silence | None = None
        self._budgets = budgets
        self._is_writing = is_writing
        self._requests = 0
        self._write_allowance_seconds = write_allowance_seconds
        self._machine = machine
        self._grace_seconds = grace_seconds
        self._stop_signal = stop_signal
        self._journal = journal
        self._echoes = echoes
        self._countdown = countdown
        self._log = structlog.get_logger()
        self._deadline: asyncio.TimerHandle | None = None

    async def until_over(self, attempt: Attempt) -> None:
        """Wait until the attempt has ended or was given up as unkillable.

        Raises NoThreadError, with all of it killed, when there is no way to watch it.
        """
        self.attempt = attempt
        if self.stop_wanted.is_set():
            # It came between the choice of the checkpoint and the start.
            self._begin_stop(attempt)
        if self.kill_wanted.is_set():
            self._machine.handle(Event.DEADLINE)
            self._kill(attempt, "killing everything now")
        over = asyncio.ensure_future(attempt.over.wait())
        watching = asyncio.gather(self._wait_for_command(attempt), self._wait_for_hang(attempt))
        ignore_outcome(watching)
        try:
            either: set[asyncio.Future[Any]] = {over, watching}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
            await over
        except NoThreadError:
            attempt.child.kill_tree()
            raise
        finally:
            watching.cancel()
            over.cancel()
            self._cancel_deadline()
            self._countdown.end()

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

    def hear_signal(self, source: str) -> None:
        """Request a stop on a signal to us or to the trainer: one that was sent to both is one."""
        if not self._echoes.is_echo():
            self.request_stop(source)

    def request_stop(self, source: str) -> None:
        """Climb one rung: save and stop, then no more waiting for the safe point, then kill."""
        self.stop_source = self.stop_source or source
        self.stop_wanted_ns = self.stop_wanted_ns or time.time_ns()
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

    def notice(self, source: str) -> None:
        """The same for who only tells that the end is near: where a stop is under way, nothing."""
        if not self.stop_wanted.is_set():
            self.hear_signal(source)

    def _begin_stop(self, attempt: Attempt) -> None:
        self._machine.handle(Event.STOP)
        grace = self._grace_seconds
        patience = grace - min(CLOSING_SECONDS, CLOSING_SHARE * grace)
        # What is in memory then has to be written within the grace period too.
        patience = max(LEAST_PATIENCE_SHARE * grace, patience - self._write_allowance_seconds())
        announcements.tell(str(self.stop_source), patience, attempt.peer is not None)
        self._countdown.begin(patience, lambda: announcements.awaited(attempt))
        self._ask_to_stop(attempt, patience)

    def _ask_to_stop(self, attempt: Attempt, patience: float) -> None:
        self._set_deadline(patience)
        page = attempt.page.values
        page[Field.STOP_DEADLINE_NS] = time.monotonic_ns() + int(patience * 1e9)
        page[Field.STOP_REQUEST] = 1
        if attempt.peer is not None:
            attempt.peer.send({"type": "stop"})
        else:
            # No session, not yet or no more: the command itself, not its group, is asked to end.
            attempt.child.ask_to_end(self._stop_signal)

    def _hurry(self, attempt: Attempt) -> None:
        if attempt.page.phase is Phase.SAVE:
            self._log.info("a save is under way and may finish; once more: kill at once")
        else:
            self._machine.handle(Event.DEADLINE)
            self._kill(attempt, announcements.hurrying(attempt))

    def _kill(self, attempt: Attempt, why: str) -> None:
        self._log.warning(why, phase=attempt.page.phase.name.lower())
        attempt.child.kill_tree()
        self._countdown.end()
        self._set_deadline(KILL_WAIT_SECONDS)

    async def unless_stopped(self, work: Awaitable[T]) -> T:
        """Await ``work``, or raise StopWantedError as soon as a stop is wanted."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self.stop_wanted.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if self.stop_wanted.is_set():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            raise StopWantedError
        return await task

    # --- hangs -------------------------------------------------------------------------------

    async def _wait_for_hang(self, attempt: Attempt) -> None:
        clock = HangClock(self._budgets, sign_of(attempt))
        while self._machine.state in (State.STARTING, State.TRAINING):
            await asyncio.sleep(TICK_SECONDS)
            sign = sign_of(attempt)
            excused = sign.activity is Activity.SAVE and self._is_writing()
            self.silence = clock.tick(sign, excused)
            if self.silence.is_hang and self._machine.state in (State.STARTING, State.TRAINING):
                await self._end_hung(attempt, self.silence)
        self.silence = None

    async def _end_hung(self, attempt: Attempt, silence: Silence) -> None:
        """Record what it does, ask it to save and end in case it is only slow, then kill it."""
        self._machine.handle(Event.HANG)
        self._set_deadline(STACKS_SECONDS + COME_BACK_SECONDS)
        self._budgets.ended_as_hung(silence.activity, silence.step)
        tree = attempt.child.tree()
        first = attempt.session_pid if attempt.session_pid in tree else attempt.child.pid
        seems = process_tree.describe_processes(first, tree)
        attempt.hang = f"no sign of life for {silence.seconds:.0f} s in {silence.activity}; {seems}"
        facts = {
            "phase": silence.activity,
            "seconds": round(silence.seconds, 1),
            "budget_seconds": silence.budget_seconds,
            "seems": seems,
        }
        self._journal.write(JournalEvent.HANG_DETECTED, attempt.number, step=silence.step, **facts)
        file = attempt.directory.stacks_file
        self._log.error("the trainer hangs: restarting it", **facts, stacks=str(file))
        tree.sort(key=lambda pid: pid != first)
        dump = os.dup(attempt.stacks_descriptor)
        with contextlib.suppress(TimeoutError, OSError):
            await asyncio.wait_for(
                in_thread(lambda: stack_dump.write(file, tree, dump)), STACKS_SECONDS
            )
        if self._machine.state is State.HUNG and not self._has_completed(attempt):
            self._ask_to_stop(attempt, min(COME_BACK_SECONDS, self._grace_seconds))

    def _has_completed(self, attempt: Attempt) -> bool:
        """Whether it came back and was done before it could be asked to stop: no hang then."""
        if attempt.reported != ExitStatus.COMPLETE:
            return False
        attempt.hang = None
        self._cancel_deadline()
        self._machine.handle(Event.RECOVERED)
        return True

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
        hung = self._machine.state is State.HUNG
        if hung and self._has_completed(attempt):
            return
        self._machine.handle(Event.DEADLINE)
        late = "it does not come back: killing it" if hung else announcements.late(attempt)
        self._kill(attempt, late)
