"""The supervisor: starts the trainer, relays stops, rotates checkpoints, restarts after failures.

Everything that happens (a signal, a message, an exit, a deadline) calls one short method on the
event loop's thread, which moves the state machine. The protocol is docs/process-contract.md.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar, assert_never

import structlog

from orchestrator import __version__
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.slots import Snapshot
from orchestrator.checkpoint.store import Store
from orchestrator.config import Config
from orchestrator.errors import ConfigError, LeftoverError, OrchestratorError
from orchestrator.exitcodes import ExitStatus
from orchestrator.journal import Journal, JournalEvent
from orchestrator.rundir import RunLock
from orchestrator.supervisor import gpus, processes
from orchestrator.supervisor.attempt import Attempt, common_environment
from orchestrator.supervisor.budget import Budget, End
from orchestrator.supervisor.channel import Channel, remove_abandoned
from orchestrator.supervisor.child import Child, start_cold
from orchestrator.supervisor.conversation import Conversation
from orchestrator.supervisor.custodian import Custodian
from orchestrator.supervisor.decisions import RETRIES, Action, Decision, decide
from orchestrator.supervisor.diagnosis import Diagnosis, Facts, diagnose
from orchestrator.supervisor.hangs import Budgets
from orchestrator.supervisor.output import TerminalOutput
from orchestrator.supervisor.processes import Remains
from orchestrator.supervisor.report import paragraph, restart_text
from orchestrator.supervisor.restarts import AttemptFailedError, retrying
from orchestrator.supervisor.signals import SignalReceiver
from orchestrator.supervisor.snapshots import SnapshotKeeper
from orchestrator.supervisor.spares import SpareKeeper
from orchestrator.supervisor.states import Event, Machine
from orchestrator.supervisor.symptoms import Kind
from orchestrator.supervisor.threads import in_thread
from orchestrator.supervisor.transcript import end_of, last_lines
from orchestrator.supervisor.watch import Watch

T = TypeVar("T")

# A disk that takes longer for a checkpoint than this is taken for dead.
WRITE_WAIT_SECONDS = 1800.0
# As for a disk: a process that cannot be ended waits for one, or for a device.
STUCK_WAIT_SECONDS = 1800.0
GPU_WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Ending:
    """How the run ended: the exit status, and whether a Ctrl-C on a terminal asked for it."""

    status: ExitStatus
    by_interrupt: bool


class _StoppedBetweenAttemptsError(Exception):
    """A stop came while no trainer was running."""


@dataclass(frozen=True)
class _Death:
    """A failed attempt as it is told to people, once it is known what happens next."""

    record: dict[str, Any]
    saved: str
    output: str


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
        self._budget = Budget.from_journal(config.max_restarts, events)
        self._checkpoints = Custodian(store, config.retention, self._journal, self._budget, events)
        self._machine = Machine()
        self._snapshots = SnapshotKeeper(
            store,
            rotated=lambda: self._conversation.rotations_end_or_stop(),
            on_written=lambda *facts: self._conversation.written(*facts),
            on_failed=lambda *facts: self._conversation.write_failed(*facts),
        )
        self._watch = Watch(
            self._machine,
            config.grace,
            Budgets(config.hang_timeout),
            lambda: self._snapshots.write_allowance_seconds,
            lambda: bool(self._snapshots.under_way),
            self._journal,
        )
        self._spares = SpareKeeper(command, config.spare)
        self._conversation = Conversation(
            config,
            command,
            store,
            self._journal,
            self._machine,
            self._watch,
            self._checkpoints,
            self._snapshots,
            self._spares,
            restarts=sum(e["event"] == JournalEvent.RESTART_SCHEDULED for e in events),
        )
        self._status: ExitStatus | None = None
        self._death: _Death | None = None
        self._gone: asyncio.Future[None] | None = None

    async def run(self) -> Ending:
        """Supervise until the run has ended.

        Raises ConfigError and NoValidCheckpointError when it cannot begin.
        """
        loop = asyncio.get_running_loop()
        # What the shell had in the background that then became us by exec: no part of the training.
        self._others = set(processes.children_of(os.getpid()))
        processes.become_subreaper()
        SignalReceiver(lambda number: self._watch.request_stop(number.name)).install(
            loop,
            on_save=self._conversation.request_checkpoint,
            on_child=self._reap,
            on_resize=self._resize,
        )
        remove_abandoned(self._lock.former_owner.get("socket"))
        self._channel = Channel(self._conversation.receive)
        try:
            self._channel.start()
            self._lock.sign(socket=self._channel.path)
            self._environment = common_environment(self._run, self._channel.path)
            self._spares.open(self._environment)
            self._journal.write(
                JournalEvent.RUN_STARTED, command=self._command, version=__version__
            )
            try:
                await self._attempts()
            finally:
                await self._settle(self._snapshots.under_way)
                await self._conversation.rotations_end()
        finally:
            await self._spares.close()
            self._channel.close()
        assert self._status is not None
        by_interrupt = self._interactive and self._watch.stop_source == signal.SIGINT.name
        return Ending(self._status, by_interrupt)

    # --- the course of the run ---------------------------------------------------------------

    async def _attempts(self) -> None:
        try:
            async for attempt in retrying(self._budget, self._pause):
                with attempt:
                    await self._live_once()
        except _StoppedBetweenAttemptsError:
            self._machine.handle(Event.STOP)
            await self._settle(self._snapshots.under_way)
            left = self._snapshots.newest_left(beyond=self._checkpoints.newest)
            saved = left is None or self._snapshots.is_durable(left)
            self._status = ExitStatus.STOPPED_SAVED if saved else ExitStatus.STOPPED_UNSAVED
            self._journal.write(JournalEvent.RUN_STOPPED, status=self._status)
            self._log.info("stopped", status=self._status.value)

    async def _live_once(self) -> None:
        """One attempt. Raises AttemptFailedError when another is to follow."""
        attempt = await self._begin()
        gathering = asyncio.ensure_future(attempt.evidence.gather())
        await self._watch.until_over(attempt)
        self._spares.trainer_has_ended()
        attempt.ended = time.monotonic()
        gathering.cancel()
        remains = await attempt.child.clean_up()
        self._gone = asyncio.ensure_future(self._all_gone(attempt, remains))
        self._checkpoints.notice_published()
        await self._keep_what_is_left(attempt)
        await self._conclude(attempt)

    async def _begin(self) -> Attempt:
        """Choose what to resume from and start; what prevents that is the end of the run."""
        try:
            if not self._snapshots.under_way:  # whose files would be swept away
                await self._unless_stopped(self._checkpoints.sweep())
            handed = self._snapshots.newest_left(beyond=self._checkpoints.newest)
            await self._unless_stopped(self._checkpoints.choose(handed))
            if self._gone is not None:
                await self._unless_stopped(self._gone)
            await self._unless_stopped(self._spares.settle())
            return await self._start(1 + self._last_attempt_number(), handed)
        except OSError as error:
            self._cannot_begin(
                problem := f"cannot start the trainer: {error}; mend that, run again"
            )
            raise ConfigError(problem) from None
        except OrchestratorError as error:
            self._cannot_begin(str(error))
            raise

    async def _all_gone(self, attempt: Attempt, remains: Remains) -> None:
        """Return when nothing of an attempt is left that the next one could meet.

        Raises LeftoverError when that does not come.
        """
        if remains.foreign:
            self._log.warning(
                "processes of another user were left running", pids=sorted(remains.foreign)
            )
        if remains.stuck:
            self._log.error(
                "processes that SIGKILL does not end, in uninterruptible sleep: the next attempt "
                "waits for their end",
                processes=processes.describe(remains.stuck[0], remains.stuck),
            )
            left = await in_thread(lambda: processes.wait(remains.stuck, STUCK_WAIT_SECONDS))
            if left:
                raise LeftoverError(processes.describe(left[0], left))
        users = remains.seen | {attempt.session_pid or attempt.child.pid}
        with contextlib.suppress(TimeoutError):
            taken = await asyncio.wait_for(
                in_thread(lambda: gpus.wait_until_released(users, GPU_WAIT_SECONDS)),
                GPU_WAIT_SECONDS + gpus.QUERY_SECONDS,
            )
            if taken:
                self._log.warning("the dead trainer still holds GPU memory", pids=sorted(taken))

    def _cannot_begin(self, reason: str) -> None:
        self._machine.handle(Event.GIVE_UP)
        self._journal.write(JournalEvent.GAVE_UP, cause="no attempt could begin", reason=reason)

    async def _keep_what_is_left(self, attempt: Attempt) -> None:
        """Have the newest snapshot written, if the trainer did not see to that itself."""
        stopping = self._watch.stop_wanted.is_set()
        if attempt.reported != ExitStatus.COMPLETE:
            attempt.left = self._snapshots.newest_left(beyond=self._checkpoints.newest)
        if attempt.left is not None:
            self._snapshots.write(attempt.left, Reason.EMERGENCY if stopping else Reason.CRASH)
        if stopping:
            await self._settle(self._snapshots.under_way)
        elif attempt.handed is not None:
            # Should it turn out to be poisoned, it must be on the disk to be set aside there.
            await self._settle([attempt.handed])

    async def _settle(self, snapshots: list[Snapshot]) -> None:
        await self._snapshots.settle(snapshots, WRITE_WAIT_SECONDS, self._watch.kill_wanted)

    async def _start(self, number: int, handed: Snapshot | None) -> Attempt:
        resume_from = self._checkpoints.resumed_from
        attempt = Attempt(self._run, number, resume_from, handed, self._snapshots)
        variables, output, lock = attempt.variables, attempt.output, self._lock.descriptor
        process = await self._spares.become_trainer(variables, output.descriptor, lock)
        warm = process is not None
        if process is None:
            process = start_cold(self._command, self._environment | variables, output, lock)
        attempt.begin(Child(process, output, lambda: self._spares.waiting | self._others))
        self._checkpoints.attempt = number
        self._budget.begin()
        self._machine.handle(Event.SPAWNED)
        source = handed or resume_from
        self._journal.write(
            JournalEvent.ATTEMPT_STARTED,
            number,
            pid=attempt.child.pid,
            resume_step=source.manifest.step if source else None,
            from_memory=handed is not None,
            from_spare=warm,
        )
        self._log.info(
            "training started",
            attempt=number,
            pid=attempt.child.pid,
            resume_from=(
                f"the snapshot of step {handed.manifest.step}"
                if handed
                else resume_from and resume_from.name
            ),
            run_dir=str(self._run.root),
        )
        return attempt

    def _last_attempt_number(self) -> int:
        names = (path.name for path in (self._run.root / "attempts").iterdir())
        on_disk = max((int(name) for name in names if name.isdecimal()), default=0)
        # On a full disk the last one has left no directory.
        return max(on_disk, self._checkpoints.attempt or 0)

    async def _conclude(self, attempt: Attempt) -> None:
        """Diagnose, decide, record, act. Raises AttemptFailedError when it is to be repeated."""
        output = end_of(attempt.directory.output_file)
        facts = self._facts(attempt, output)
        if attempt.left is not None and not facts.stop_requested:
            # In this order: what was saved before a failure must not make up for it.
            self._budget.refill(*attempt.left.order)
        diagnosis = diagnose(facts)
        end = End(
            kind=diagnosis.kind,
            fingerprint=diagnosis.fingerprint,
            step=attempt.step,
            resumed_step=attempt.resumed_step,
            loading=attempt.loading,
            rejected_snapshot=attempt.rejected and attempt.handed is not None,
            reached_safe_point=attempt.reached_safe_point,
            connected=attempt.connected,
        )
        self._budget.record(end)
        decision = Decision(Action.STOP, "a stop came before it was decided")
        try:
            decision = await self._prepare(attempt, end, decide(end, self._budget))
        finally:
            record = attempt.record_end(
                outcome=diagnosis.outcome,
                kind=diagnosis.kind,
                cause=diagnosis.cause,
                fingerprint=diagnosis.fingerprint,
                stack=diagnosis.stack,
                oom_kills=facts.oom_kills,
                last_lines=last_lines(output),
                stop_requested=self._watch.stop_source,
                decision=decision.action,
                reason=decision.reason,
            )
            self._journal.write(JournalEvent.ATTEMPT_EXITED, **record)
        if lost := attempt.output.lost_bytes:
            self._log.warning(
                "the disk refused a part of the trainer's output",
                bytes=lost,
                output=str(attempt.directory.output_file),
            )
        self._act(attempt, diagnosis, decision, record)

    def _facts(self, attempt: Attempt, output: list[str]) -> Facts:
        return Facts(
            returncode=-signal.SIGKILL if attempt.returncode is None else attempt.returncode,
            connected=attempt.connected,
            reported=attempt.reported,
            stop_requested=self._watch.stop_wanted.is_set(),
            lost_steps=self._lost_steps(attempt),
            error=attempt.error(),
            hang=attempt.hang,
            oom_kills=attempt.evidence.oom_kills(),
            output=output,
        )

    def _lost_steps(self, attempt: Attempt) -> int:
        newest = self._checkpoints.newest
        return max(0, attempt.last_step - (newest.manifest.step if newest else 0))

    async def _prepare(self, attempt: Attempt, end: End, decision: Decision) -> Decision:
        """Set aside what the decision doubts; where that cannot be, another row decides."""
        match decision.action:
            case Action.FORGET:
                self._snapshots.forget()
                # What was written from it is no better.
                await self._demote(attempt, decision.reason)
            case Action.DEMOTE:
                self._budget.demoted = True
                self._snapshots.forget()
                if not await self._demote(attempt, decision.reason):
                    return decide(end, self._budget)
            case Action.REQUEUE:
                # The status is to say whether all is saved.
                await self._settle(self._snapshots.under_way)
        return decision

    async def _demote(self, attempt: Attempt, reason: str) -> bool:
        return await self._unless_stopped(self._checkpoints.demote(attempt.handed, reason))

    def _act(
        self,
        attempt: Attempt,
        diagnosis: Diagnosis,
        decision: Decision,
        record: dict[str, Any],
    ) -> None:
        self._status = diagnosis.status
        self._death = _Death(
            record, self._saved(attempt, decision), str(attempt.directory.output_file)
        )
        match decision.action:
            case Action.FINISH:
                self._machine.handle(Event.COMPLETE)
                self._journal.write(JournalEvent.RUN_COMPLETED, attempt.number, step=attempt.step)
                self._log.info(diagnosis.cause, step=attempt.step, epoch=attempt.epoch)
            case Action.STOP:
                self._machine.handle(Event.STOP)
                self._report_stop(attempt, diagnosis.status)
            case Action.RETRY | Action.DEMOTE | Action.FORGET:
                self._machine.handle(Event.RETRY)
                raise AttemptFailedError(diagnosis.cause)
            case Action.REQUEUE:
                self._machine.handle(Event.STOP)
                lost = self._lost_steps(attempt)
                self._status = ExitStatus.STOPPED_UNSAVED if lost else ExitStatus.STOPPED_SAVED
                self._journal.write(
                    JournalEvent.RUN_STOPPED,
                    attempt.number,
                    status=self._status,
                    step=attempt.step,
                    reason=decision.reason,
                )
                self._tell_of_death(f"ended: {decision.reason}")
            case Action.GIVE_UP:
                self._machine.handle(Event.GIVE_UP)
                if diagnosis.kind is Kind.STOPPED:
                    self._status = ExitStatus.GAVE_UP
                self._journal.write(
                    JournalEvent.GAVE_UP,
                    attempt.number,
                    cause=diagnosis.cause,
                    reason=decision.reason,
                )
                self._tell_of_death(f"gave up: {decision.reason}")
            case _:
                assert_never(decision.action)

    def _saved(self, attempt: Attempt, decision: Decision) -> str:
        if decision.action is Action.DEMOTE:
            return f"an older checkpoint, since {decision.reason}"
        if attempt.left is not None and not self._snapshots.is_durable(attempt.left):
            return f"step {attempt.left.manifest.step}, in memory and being written"
        newest = self._checkpoints.newest
        return f"step {newest.manifest.step}, {newest.path}" if newest else "nothing yet"

    def _tell_of_death(self, now: str) -> None:
        assert self._death is not None
        record, output = self._death.record, self._death.output
        tell = self._log.warning if record["decision"] in RETRIES else self._log.error
        tell(
            record["cause"],
            details=paragraph(record, self._death.saved, now, output),
            kind=record["kind"],
            step=record["step"],
            decision=record["decision"],
            output=output,
        )

    def _report_stop(self, attempt: Attempt, status: ExitStatus) -> None:
        newest = self._checkpoints.newest
        self._journal.write(
            JournalEvent.RUN_STOPPED, attempt.number, status=status, step=attempt.step
        )
        where = str(newest.path) if newest else None
        if status is ExitStatus.STOPPED_SAVED and newest is None:
            self._log.info("stopped before the first step: there was nothing to save")
        elif status is ExitStatus.STOPPED_SAVED:
            self._log.info("stopped; the state is saved", checkpoint=where)
        else:
            self._log.error(
                "stopped; the last steps are not saved",
                lost_steps=self._lost_steps(attempt),
                checkpoint=where,
            )

    async def _pause(self, seconds: float) -> None:
        self._conversation.restarts += 1
        self._journal.write(
            JournalEvent.RESTART_SCHEDULED, delay_seconds=seconds, failures=self._budget.spent
        )
        self._tell_of_death(restart_text(seconds, self._budget.spent, self._config.max_restarts))
        await self._unless_stopped(asyncio.sleep(seconds))
        self._machine.handle(Event.DUE)

    async def _unless_stopped(self, work: Awaitable[T]) -> T:
        """Await ``work``, or raise _StoppedBetweenAttemptsError as soon as a stop is wanted."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._watch.stop_wanted.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if self._watch.stop_wanted.is_set():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            raise _StoppedBetweenAttemptsError
        return await task

    # --- what the system tells ---------------------------------------------------------------

    def _reap(self) -> None:
        attempt = self._watch.attempt
        processes.reap(keep=self._spares.awaited | ({attempt.child.pid} if attempt else set()))
        self._others.intersection_update(processes.children_of(os.getpid()))

    def _resize(self) -> None:
        attempt = self._watch.attempt
        if attempt is not None and isinstance(attempt.output, TerminalOutput):
            attempt.output.resize()
