"""The supervisor: starts the trainer, relays stops, rotates checkpoints, restarts after failures.

Everything that happens (a signal, a message, an exit, a deadline) calls one short method on the
event loop's thread, which moves the state machine. The protocol is docs/process-contract.md.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import structlog

from orchestrator import __version__
from orchestrator.checkpoint.store import Store
from orchestrator.config import Config
from orchestrator.exitcodes import ExitStatus
from orchestrator.journal import Journal, JournalEvent
from orchestrator.page import Field, Phase
from orchestrator.rundir import RunLock
from orchestrator.supervisor.attempt import Attempt
from orchestrator.supervisor.channel import Channel, Peer, remove_abandoned
from orchestrator.supervisor.child import KILL_WAIT_SECONDS, become_subreaper, reap_adopted
from orchestrator.supervisor.custodian import Custodian
from orchestrator.supervisor.judge import Facts, Outcome, Verdict, judge
from orchestrator.supervisor.output import TerminalOutput
from orchestrator.supervisor.restarts import (
    AttemptFailedError,
    Budget,
    Failure,
    GiveUp,
    decide,
    fingerprint,
    retrying,
)
from orchestrator.supervisor.signals import SignalReceiver
from orchestrator.supervisor.states import Event, Machine, State
from orchestrator.supervisor.status import Status, describe_checkpoint
from orchestrator.wire import PROTOCOL_VERSION, Message

T = TypeVar("T")

# Of the grace period, what ending the processes and writing the last records may take.
CLOSING_SECONDS = 2.0
CLOSING_SHARE = 0.2
# A dying process closes its socket an instant before or after its exit is seen.
LAST_WORDS_SECONDS = 1.0
ROTATION_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Ending:
    """How the run ended: the exit status, and whether a Ctrl-C on a terminal asked for it."""

    status: ExitStatus
    by_interrupt: bool


class _StoppedBetweenAttemptsError(Exception):
    """A stop came while no trainer was running."""


class Supervisor:
    """One run under supervision, from the first attempt to the end."""

    def __init__(
        self,
        config: Config,
        command: list[str],
        store: Store,
        lock: RunLock,
        interactive: bool,
    ) -> None:
        self._config = config
        self._command = command
        self._store = store
        self._run = run = store.run
        self._lock = lock
        self._interactive = interactive
        self._log = structlog.get_logger()
        self._journal = Journal(run.journal_file)
        events, damaged = self._journal.read()
        if damaged:
            self._log.warning(
                "damaged lines in the journal were skipped", lines=damaged, path=run.journal_file
            )
        self._restarts = sum(e["event"] == JournalEvent.RESTART_SCHEDULED for e in events)
        self._budget = Budget.from_journal(config.max_restarts, events)
        self._checkpoints = Custodian(store, config.retention, self._journal, self._budget, events)
        self._machine = Machine()
        self._attempt: Attempt | None = None
        self._verdict: Verdict | None = None
        self._stop_source: str | None = None
        self._stop_wanted = asyncio.Event()
        self._deadline: asyncio.TimerHandle | None = None
        self._rotations: set[asyncio.Task[None]] = set()
        self._waiting_for_checkpoint: list[Peer] = []
        self._grace_checked = False

    async def run(self) -> Ending:
        """Supervise until the run has ended.

        Raises ConfigError and NoValidCheckpointError when it cannot begin.
        """
        loop = asyncio.get_running_loop()
        become_subreaper()
        SignalReceiver(lambda number: self._request_stop(number.name)).install(
            loop, on_save=self._request_checkpoint, on_child=self._reap, on_resize=self._resize
        )
        remove_abandoned(self._lock.former_owner.get("socket"))
        self._channel = Channel(self._receive)
        try:
            self._channel.start()
            self._lock.sign(socket=self._channel.path)
            self._journal.write(
                JournalEvent.RUN_STARTED, command=self._command, version=__version__
            )
            await self._attempts()
        finally:
            self._channel.close()
        assert self._verdict is not None
        by_interrupt = self._interactive and self._stop_source == signal.SIGINT.name
        return Ending(self._verdict.status, by_interrupt)

    # --- the course of the run ---------------------------------------------------------------

    async def _attempts(self) -> None:
        loop = retrying(self._budget, lambda: self._machine.state is State.FAILED, self._pause)
        try:
            async for attempt in loop:
                with attempt:
                    await self._live_once()
        except AttemptFailedError:
            pass  # the verdict says why no other attempt follows
        except _StoppedBetweenAttemptsError:
            self._machine.handle(Event.STOP)
            saved = ExitStatus.STOPPED_SAVED
            self._verdict = Verdict(Outcome.STOPPED, saved, "stopped while no trainer was running")
            self._journal.write(JournalEvent.RUN_STOPPED, status=saved)
            self._log.info("stopped", status=saved.value)

    async def _live_once(self) -> None:
        """One attempt. Raises AttemptFailedError when it failed, whether or not it is the last."""
        await self._unless_stopped(self._checkpoints.choose())
        attempt = self._start(1 + self._last_attempt_number())
        waiter = asyncio.ensure_future(self._wait_for_command(attempt))
        await attempt.over.wait()
        waiter.cancel()
        self._cancel_deadline()
        survivors = await attempt.child.clean_up()
        if survivors:
            self._log.error("processes could not be ended", pids=survivors)
        if self._rotations:
            await asyncio.wait(self._rotations, timeout=ROTATION_WAIT_SECONDS)
        self._checkpoints.notice_published()
        self._conclude(attempt)

    def _start(self, number: int) -> Attempt:
        resume_from = self._checkpoints.resumed_from
        attempt = Attempt(
            self._run,
            number,
            self._command,
            resume_from,
            self._channel.path,
            self._lock.descriptor,
        )
        self._attempt = attempt
        self._checkpoints.attempt = number
        self._machine.handle(Event.SPAWNED)
        self._journal.write(JournalEvent.ATTEMPT_STARTED, number, pid=attempt.child.pid)
        self._log.info(
            "training started",
            attempt=number,
            pid=attempt.child.pid,
            resume_from=resume_from.name if resume_from else None,
            run_dir=str(self._run.root),
        )
        if self._stop_wanted.is_set():
            # It came between the choice and the start.
            self._begin_stop(attempt)
        return attempt

    def _last_attempt_number(self) -> int:
        names = (path.name for path in (self._run.root / "attempts").iterdir())
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def _conclude(self, attempt: Attempt) -> None:
        newest = self._checkpoints.newest
        error = attempt.directory.error()
        facts = Facts(
            returncode=-signal.SIGKILL if attempt.returncode is None else attempt.returncode,
            connected=attempt.connected,
            reported=attempt.reported,
            stop_requested=self._stop_wanted.is_set(),
            lost_steps=max(0, attempt.step - (newest.manifest.step if newest else 0)),
            error=error,
        )
        verdict = self._verdict = judge(facts)
        mark = fingerprint(error, facts.returncode) if verdict.outcome is Outcome.FAILED else None
        record = attempt.record_end(
            outcome=verdict.outcome,
            cause=verdict.cause,
            fingerprint=mark,
            stop_requested=self._stop_source,
        )
        self._journal.write(JournalEvent.ATTEMPT_EXITED, **record)
        match verdict.outcome:
            case Outcome.COMPLETE:
                self._machine.handle(Event.COMPLETE)
                self._journal.write(JournalEvent.RUN_COMPLETED, attempt.number, step=attempt.step)
                self._log.info(verdict.cause, step=attempt.step, epoch=attempt.epoch)
            case Outcome.STOPPED:
                self._machine.handle(Event.STOP)
                self._report_stop(attempt, verdict, facts.lost_steps)
            case Outcome.REFUSED:
                self._give_up(attempt, verdict.cause, "a restart would not help")
            case Outcome.FAILED:
                failure = Failure(
                    cause=verdict.cause,
                    fingerprint=mark,
                    step=attempt.step,
                    resumed_step=attempt.resume_from.manifest.step if attempt.resume_from else None,
                    before_first_safe_point=not attempt.reached_safe_point,
                )
                self._decide(attempt, failure)
                raise AttemptFailedError(verdict.cause)

    def _decide(self, attempt: Attempt, failure: Failure) -> None:
        self._budget.record(failure)
        decision = decide(failure, self._budget)
        if not isinstance(decision, GiveUp) and decision.demote:
            self._budget.demoted = True
            if not self._checkpoints.demote():
                decision = GiveUp(f"the same failure came again at step {failure.step}")
        if isinstance(decision, GiveUp):
            self._give_up(attempt, failure.cause, decision.reason)
            return
        self._machine.handle(Event.RETRY)
        self._log.warning(failure.cause, step=failure.step, output=attempt.directory.output_file)

    def _give_up(self, attempt: Attempt, cause: str, reason: str) -> None:
        self._machine.handle(Event.GIVE_UP)
        self._journal.write(JournalEvent.GAVE_UP, attempt.number, cause=cause, reason=reason)
        self._log.error(
            f"gave up: {cause}; {reason}",
            step=attempt.step,
            output=str(attempt.directory.output_file),
        )

    def _report_stop(self, attempt: Attempt, verdict: Verdict, lost_steps: int) -> None:
        newest = self._checkpoints.newest
        self._journal.write(
            JournalEvent.RUN_STOPPED, attempt.number, status=verdict.status, step=attempt.step
        )
        where = str(newest.path) if newest else None
        if verdict.status is ExitStatus.STOPPED_SAVED:
            self._log.info("stopped; the state is saved", checkpoint=where)
        else:
            self._log.error(
                "stopped; the last steps are not saved", lost_steps=lost_steps, checkpoint=where
            )

    async def _pause(self, seconds: float) -> None:
        self._restarts += 1
        self._journal.write(
            JournalEvent.RESTART_SCHEDULED, delay_seconds=seconds, failures=self._budget.spent
        )
        self._log.info("restarting", in_seconds=round(seconds, 1), failures=self._budget.spent)
        await self._unless_stopped(asyncio.sleep(seconds))
        self._machine.handle(Event.DUE)

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work``, or raise _StoppedBetweenAttemptsError as soon as a stop is wanted."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._stop_wanted.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if self._stop_wanted.is_set():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            raise _StoppedBetweenAttemptsError
        return await task

    # --- stops -------------------------------------------------------------------------------

    def _request_stop(self, source: str) -> None:
        self._stop_source = source
        self._stop_wanted.set()
        self._journal.write(JournalEvent.STOP_REQUESTED, self._checkpoints.attempt, source=source)
        attempt = self._attempt
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
        grace = self._config.grace
        patience = grace - min(CLOSING_SECONDS, CLOSING_SHARE * grace)
        self._set_deadline(patience)
        page = attempt.page.values
        page[Field.STOP_DEADLINE_NS] = time.monotonic_ns() + int(patience * 1e9)
        page[Field.STOP_REQUEST] = 1
        self._log.info(
            f"stopping on {self._stop_source}: saving at the next safe point, which may take up to "
            f"{grace:g} s. Again: do not wait for the safe point. A third time: kill at once"
        )
        if attempt.peer is not None:
            attempt.peer.send({"type": "stop", "deadline_ns": page[Field.STOP_DEADLINE_NS]})
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
        attempt = self._attempt
        if attempt is None or attempt.over.is_set():
            return
        if self._machine.state is State.KILLING:
            self._log.error("the trainer does not end even when killed", pid=attempt.child.pid)
            self._end_attempt(attempt)
            return
        self._machine.handle(Event.DEADLINE)
        self._kill(attempt, "the safe point or the save did not come in time")

    # --- the trainer's life ------------------------------------------------------------------

    async def _wait_for_command(self, attempt: Attempt) -> None:
        attempt.returncode = await attempt.child.wait()
        if attempt.peer is not None:
            await asyncio.sleep(LAST_WORDS_SECONDS)
        if attempt.peer is None:
            self._end_attempt(attempt)
        elif self._machine.state in (State.STARTING, State.TRAINING):
            # The command was a shell, say, that a signal ended, while its trainer runs on.
            self._request_stop("the end of the command before its trainer")

    def _trainer_lost(self, attempt: Attempt) -> None:
        attempt.peer = None
        if attempt.returncode is not None:
            self._end_attempt(attempt)

    def _end_attempt(self, attempt: Attempt) -> None:
        if not attempt.over.is_set():
            self._machine.handle(Event.EXITED)
            attempt.over.set()

    def _reap(self) -> None:
        reap_adopted(self._attempt.child.pid if self._attempt else None)

    def _resize(self) -> None:
        if self._attempt is not None and isinstance(self._attempt.output, TerminalOutput):
            self._attempt.output.resize()

    # --- messages ----------------------------------------------------------------------------

    async def _receive(self, peer: Peer, message: Message) -> None:
        attempt = self._attempt
        match message.get("type"):
            case "status":
                peer.send(self._status().to_json())
            case "stop":
                peer.send({"type": "stopping", "grace_seconds": self._config.grace})
                self._request_stop("orchestrator stop")
            case "checkpoint":
                self._waiting_for_checkpoint.append(peer)
                self._request_checkpoint()
            case "hello" if attempt is not None:
                self._welcome(attempt, peer, message)
            case kind if attempt is not None and peer is attempt.peer:
                self._hear_trainer(attempt, str(kind), message)

    def _welcome(self, attempt: Attempt, peer: Peer, message: Message) -> None:
        if (
            attempt.over.is_set()
            or attempt.connected
            or str(message.get("attempt")) != str(attempt.number)
        ):
            peer.send({"type": "refused", "reason": "another session has this run already"})
            return
        attempt.peer, attempt.connected = peer, True
        peer.send(
            {
                "type": "welcome",
                "protocol": PROTOCOL_VERSION,
                "run_id": self._store.run_id,
                "every": asdict(self._config.every),
                "grace_seconds": self._config.grace,
            },
            attempt.descriptors,
        )
        self._machine.handle(Event.CONNECTED)

    def _hear_trainer(self, attempt: Attempt, kind: str, message: Message) -> None:
        facts = {key: value for key, value in message.items() if key != "type"}
        match kind:
            case "resumed":
                self._journal.write(JournalEvent.RESUMED, attempt.number, **facts)
            case "stop_noticed":
                self._journal.write(JournalEvent.STOP_NOTICED, attempt.number, **facts)
                # A scheduler may have signalled the trainer alone: that too is a stop.
                if not self._stop_wanted.is_set():
                    self._request_stop(f"{facts.get('source')} to the trainer")
            case "published":
                self._hear_published(str(facts.get("name")), facts)
            case "save_failed":
                self._journal.write(JournalEvent.CHECKPOINT_FAILED, attempt.number, **facts)
                self._log.error(str(facts.get("problem")), training="goes on")
                self._answer_waiting({"type": "failed", **facts})
            case "metrics":
                attempt.metrics = facts.get("metrics", {})
            case "ended":
                attempt.reported = facts.get("status")
            case "lost":
                self._trainer_lost(attempt)

    def _hear_published(self, name: str, facts: dict[str, Any]) -> None:
        seconds = facts.get("seconds")
        checkpoint = self._checkpoints.published(name, seconds=seconds)
        if checkpoint is None:
            return
        self._log.info(
            "checkpoint", step=checkpoint.manifest.step, reason=checkpoint.manifest.reason.value
        )
        self._answer_waiting({"type": "published", "path": str(checkpoint.path)})
        self._warn_of_short_grace(seconds)
        rotation = asyncio.ensure_future(self._checkpoints.rotate())
        self._rotations.add(rotation)
        rotation.add_done_callback(self._rotations.discard)

    def _warn_of_short_grace(self, save_seconds: Any) -> None:
        if self._grace_checked or not isinstance(save_seconds, float):
            return
        self._grace_checked = True
        if save_seconds > self._config.grace * (1 - CLOSING_SHARE):
            self._log.warning(
                f"saving takes {save_seconds:.1f} s and --grace is {self._config.grace:g} s: a "
                "stop would not have the time to save; raise --grace, and what the host allows"
            )

    def _request_checkpoint(self) -> None:
        if self._attempt is None or self._attempt.over.is_set():
            self._answer_waiting({"type": "failed", "problem": "no trainer is running now"})
        else:
            self._attempt.page.values[Field.CHECKPOINT_REQUESTS] += 1

    def _answer_waiting(self, message: Message) -> None:
        for peer in self._waiting_for_checkpoint:
            peer.send(message)
        self._waiting_for_checkpoint.clear()

    def _status(self) -> Status:
        attempt = self._attempt
        newest = self._checkpoints.newest
        status = Status(
            run_id=self._store.run_id, state=self._machine.state, run_dir=str(self._run.root)
        )
        status.supervisor_pid = os.getpid()
        status.restarts = self._restarts
        status.newest_checkpoint = describe_checkpoint(newest) if newest else None
        if attempt is not None:
            status.attempt = attempt.number
            status.metrics = attempt.metrics
            if attempt.connected:
                status.step, status.epoch = attempt.step, attempt.epoch
            if not attempt.over.is_set():
                status.trainer_pid = attempt.child.pid
                alive = time.monotonic() - attempt.started
                age = status.newest_checkpoint["age_seconds"] if status.newest_checkpoint else alive
                status.lose_at_most_seconds = round(min(alive, age), 3)
        return status
