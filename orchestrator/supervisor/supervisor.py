"""The supervisor: starts the trainer, relays stops, rotates checkpoints, restarts after failures.

Everything that happens (a signal, a message, an exit, a deadline) calls one short method on the
event loop's thread, which moves the state machine.
The protocol is docs/reference/process-contract.md.
"""

import asyncio
import os
import signal
import time
from dataclasses import dataclass

import structlog

from orchestrator import __version__
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.store import Store
from orchestrator.config import Config
from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.exitcodes import ExitStatus
from orchestrator.hosts.host_events import HostEvents
from orchestrator.hosts.systemd.notify import Notifier
from orchestrator.hosts.systemd.watchdog import ServiceWatchdog
from orchestrator.ipc.server import MessageServer, remove_stale_socket
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.lock import RunLock
from orchestrator.snapshot.slots import Snapshot
from orchestrator.supervisor import report
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.cleanup import all_gone
from orchestrator.supervisor.attempt.environment import common_environment
from orchestrator.supervisor.attempt.launcher import Starter
from orchestrator.supervisor.attempt.output import TerminalOutput
from orchestrator.supervisor.checkpoints.fdstore import FdStore
from orchestrator.supervisor.judge import Judge, Verdict
from orchestrator.supervisor.outcome import act
from orchestrator.supervisor.recovery.backoff import retrying
from orchestrator.supervisor.signals import take_over
from orchestrator.supervisor.state_machine import Event
from orchestrator.supervisor.termination.stop_ladder import StopWantedError
from orchestrator.supervisor.wiring import assemble
from orchestrator.system import process_tree
from orchestrator.system.heartbeat import Heartbeat
from orchestrator.system.recorded_command import recorded
from orchestrator.system.threads import ignore_outcome
from orchestrator.telemetry.event_hook import EventHook
from orchestrator.terminal.console import Console


@dataclass(frozen=True)
class Ending:
    """How the run ended: the exit status, and whether a Ctrl-C on a terminal asked for it."""

    status: ExitStatus
    by_interrupt: bool


class Supervisor:
    """One run under supervision, from the first attempt to the end."""

    def __init__(
        self,
        config: Config,
        command: list[str],
        store: Store,
        lock: RunLock,
        console: Console,
        notifier: Notifier,
    ) -> None:
        self._config = config
        self._command = command
        self._store = store
        self._run = run = store.run
        self._lock = lock
        self._console = console
        self._log = structlog.get_logger()
        self._journal = Journal(run.journal_file)
        events, damaged = self._journal.read()
        if damaged:
            self._log.warning(
                "damaged lines in the journal were skipped", lines=damaged, path=run.journal_file
            )
        parts = assemble(config, command, store, self._journal, events, console.set_footer)
        self._budget, self._machine = parts.budget, parts.machine
        self._checkpoints, self._snapshots = parts.checkpoints, parts.snapshots
        self._watch, self._conversation = parts.watch, parts.conversation
        self._spares, self._adoption = parts.spares, parts.adoption
        self._service = ServiceWatchdog(
            notifier,
            self._conversation.status,
            self._watch.stop_wanted.is_set,
            self._snapshots.writing,
            self._pulses,
        )
        self._heritage = FdStore(notifier)
        self._starter = Starter(
            run,
            command,
            config.resume_arg,
            lock.descriptor,
            console.output,
            self._journal,
            self._checkpoints,
            self._snapshots,
            self._spares,
            self._heritage,
            self._not_the_trainers,
        )
        self._status: ExitStatus | None = None
        self._judge = Judge(
            self._budget, self._checkpoints, self._snapshots, self._watch, self._journal
        )
        self._surroundings = HostEvents(
            config,
            run,
            self._journal,
            events,
            lambda: self._snapshots.write_allowance_seconds,
            self._watch.notice,
        )
        self._hook = EventHook(config.on_event, run, self._surroundings.subprocesses)
        self._journal.listeners.append(self._hook.on_journal_event)
        self._verdict: Verdict | None = None
        self._gone: asyncio.Future[None] | None = None

    async def run(self) -> Ending:
        """Supervise until the run has ended.

        Raises ConfigError and NoValidCheckpointError when it cannot begin.
        """
        loop = asyncio.get_running_loop()
        # What the shell had in the background that then became us by exec: no part of the training.
        self._others = set(process_tree.children_of(os.getpid()))
        process_tree.become_subreaper()
        take_over(
            loop,
            on_stop=self._watch.hear_signal,
            on_save=self._conversation.request_checkpoint,
            on_child=self._reap,
            on_resize=self._resize,
        )
        remove_stale_socket(self._lock.previous_owner.get("socket"))
        self._channel = MessageServer(self._conversation.receive)
        telling = asyncio.ensure_future(self._service.run())
        try:
            self._channel.start()
            self._lock.write_owner(socket=self._channel.path)
            self._environment = common_environment(
                self._run, self._store.run_id, self._channel.path
            )
            self._spares.open(self._environment)
            self._journal.write(
                JournalEvent.RUN_STARTED, command=recorded(self._command), version=__version__
            )
            self._surroundings.start(self._conversation.save_now)
            try:
                await self._attempts()
                self._service.notify_stopping()
            finally:
                await self._settle_all()
                await self._conversation.rotations_end()
                await self._hook.finish(self._watch.kill_wanted)
        finally:
            await self._spares.close()
            self._channel.close()
            telling.cancel()
        assert self._status is not None
        await self._surroundings.finish(self._status, self._watch.stop_source)
        is_interrupt = self._watch.stop_source == signal.SIGINT.name
        return Ending(self._status, self._console.is_interactive and is_interrupt)

    # --- the course of the run ---------------------------------------------------------------

    async def _attempts(self) -> None:
        try:
            async for attempt in retrying(self._budget, self._pause):
                with attempt:
                    await self._live_once()
        except StopWantedError:
            self._machine.handle(Event.STOP)
            await self._settle_all()
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
        self._spares.on_trainer_exit()
        attempt.ended = time.monotonic()
        gathering.cancel()
        remains = await attempt.child.clean_up()
        users = remains.seen | {attempt.session_pid or attempt.child.pid}
        self._gone = asyncio.ensure_future(all_gone(remains, users))
        ignore_outcome(self._gone)  # where no attempt follows
        if self._adoption is not None:
            await self._adoption.end(attempt)
        self._checkpoints.notice_published()
        await self._keep_what_is_left(attempt)
        self._verdict = verdict = await self._judge.judge(attempt)
        newest = self._checkpoints.newest
        self._status = act(verdict, attempt, newest, self._machine, self._journal)

    async def _begin(self) -> Attempt:
        """Choose what to resume from and start; what prevents that is the end of the run."""
        try:
            if not self._snapshots.under_way:  # whose files would be swept away
                await self._watch.unless_stopped(self._checkpoints.sweep())
            if self._checkpoints.attempt is None:
                await self._watch.unless_stopped(
                    self._heritage.accept(self._store.run_id, self._checkpoints, self._snapshots)
                )
            handed = self._snapshots.newest_left(beyond=self._checkpoints.newest)
            await self._watch.unless_stopped(self._choose(handed))
            if self._gone is not None:
                await self._watch.unless_stopped(self._gone)
            await self._watch.unless_stopped(self._spares.wait_until_ready())
            attempt = await self._starter.start(self._environment, handed)
        except OSError as error:
            problem = ConfigError(f"cannot start the trainer: {error}; mend that, run again")
            self._cannot_begin(problem)
            raise problem from None
        except OrchestratorError as error:
            self._cannot_begin(error)
            raise
        self._budget.begin()
        if self._adoption is not None:
            self._adoption.begin(attempt)
        self._machine.handle(Event.SPAWNED)
        self._service.notify_ready()
        return attempt

    async def _choose(self, handed: Snapshot | None) -> None:
        if self._adoption is not None and self._checkpoints.attempt is None:
            await self._adoption.take_stock()
        chosen = await self._checkpoints.choose(handed)
        if self._adoption is not None:
            await self._adoption.put_back(chosen)

    def _cannot_begin(self, error: OrchestratorError) -> None:
        self._machine.handle(Event.GIVE_UP)
        self._journal.write(
            JournalEvent.GAVE_UP,
            cause="no attempt could begin",
            reason=str(error),
            status=error.status,
        )

    async def _keep_what_is_left(self, attempt: Attempt) -> None:
        """Have the newest snapshot written, if the trainer did not see to that itself."""
        stopping = self._watch.stop_wanted.is_set()
        if attempt.reported != ExitStatus.COMPLETE:
            attempt.left = self._snapshots.newest_left(beyond=self._checkpoints.newest)
        if attempt.left is not None:
            self._snapshots.write(attempt.left, Reason.EMERGENCY if stopping else Reason.CRASH)
        if stopping:
            await self._settle_all()
        elif attempt.handed is not None:
            # Should it turn out to be poisoned, it must be on the disk to be set aside there.
            await self._snapshots.settle([attempt.handed], self._watch.kill_wanted)

    async def _settle_all(self) -> None:
        await self._snapshots.settle(self._snapshots.under_way, self._watch.kill_wanted)

    async def _pause(self, seconds: float) -> None:
        self._conversation.restarts += 1
        self._journal.write(
            JournalEvent.RESTART_SCHEDULED, delay_seconds=seconds, failures=self._budget.spent
        )
        assert self._verdict is not None
        report.tell_of_death(
            self._verdict,
            report.restart_text(seconds, self._budget.spent, self._config.max_restarts),
        )
        await self._watch.unless_stopped(asyncio.sleep(seconds))
        self._machine.handle(Event.DUE)

    # --- what the system tells ---------------------------------------------------------------

    def _not_the_trainers(self) -> set[int]:
        """Processes below us that do not end with an attempt."""
        return self._spares.spare_pids | self._others | self._surroundings.subprocesses.running

    def _reap(self) -> None:
        attempt = self._watch.attempt
        awaited = self._spares.pids_with_waiter | self._surroundings.subprocesses.running
        process_tree.reap_children(keep=awaited | ({attempt.child.pid} if attempt else set()))
        self._others.intersection_update(process_tree.children_of(os.getpid()))

    def _pulses(self) -> list[Heartbeat]:
        attempt = self._watch.attempt
        copying = [] if attempt is None or attempt.over.is_set() else [attempt.output.pulse]
        return [self._snapshots.writing, *copying]

    def _resize(self) -> None:
        attempt = self._watch.attempt
        if attempt is not None and isinstance(attempt.output, TerminalOutput):
            attempt.output.resize()
