"""Supervises a run: starts the trainer, waits for its end, judges it, and starts it again.

What happens beside that (a signal, a message, a deadline) calls one short method of a part on the
event loop's thread. The protocol is docs/reference/process-contract.md.
"""

import asyncio
import signal
import time
from dataclasses import dataclass
from typing import Any

import structlog

from orchestrator import __version__
from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Reason
from orchestrator.errors import ConfigError, LimitReachedError, OrchestratorError
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.messages import SOCKET_VARIABLE
from orchestrator.ipc.server import MessageServer
from orchestrator.rundir.journal import JournalEvent
from orchestrator.snapshot.slots import Snapshot
from orchestrator.supervisor import report
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.cleanup import all_gone
from orchestrator.supervisor.attempt.environment import common_environment
from orchestrator.supervisor.attempt.launcher import LaunchSpec, launch
from orchestrator.supervisor.attempt.output import OutputTarget, TerminalOutput
from orchestrator.supervisor.attempt.rank import Rank
from orchestrator.supervisor.judge import Verdict
from orchestrator.supervisor.outcome import carry_out
from orchestrator.supervisor.recovery.backoff import delay_seconds
from orchestrator.supervisor.signal_handlers import take_over
from orchestrator.supervisor.state_machine import Event
from orchestrator.supervisor.stop_request import StopWantedError
from orchestrator.supervisor.wiring import Parts
from orchestrator.system import process_tree
from orchestrator.system.races import beside, first_of
from orchestrator.system.recorded_command import recorded
from orchestrator.system.threads import ignore_outcome

# A dying process closes its socket an instant before or after its exit is seen.
LAST_WORDS_SECONDS = 1.0


@dataclass(frozen=True)
class Ending:
    """How the run ended: the exit status, and whether a Ctrl-C on a terminal asked for it."""

    status: ExitStatus
    by_interrupt: bool


class Supervisor:
    """One run under supervision, from the first attempt to the end."""

    def __init__(self, parts: Parts, given: tuple[int, ...] = ()) -> None:
        """``given`` are descriptors that the command inherits from this process's parent."""
        self._parts = parts
        self._given = given
        self._run = parts.store.run
        self._facts, self._stop = parts.facts, parts.facts.stop
        self._catalog, self._snapshots = parts.catalog, parts.snapshots
        self._ladder, self._spares = parts.ladder, parts.spares
        self._journal = parts.journal
        self._log = structlog.get_logger()
        self._former_processes: asyncio.Future[None] | None = None
        """Done when nothing of the former attempt is left."""

    async def run(self) -> Ending:
        """Supervise until the run has ended.

        Raises ConfigError and NoValidCheckpointError when it cannot begin.
        """
        parts = self._parts
        # A shell that became this process may have left background jobs.
        parts.unrelated.record_earlier()
        process_tree.become_subreaper()
        take_over(
            asyncio.get_running_loop(),
            on_stop=self._ladder.on_signal,
            on_save=parts.save_requests.request,
            on_child=self._on_child,
            on_resize=self._on_resize,
        )
        server = MessageServer(
            parts.message_handlers.handle,
            self._run.root,
            announce=lambda path: parts.lock.write_owner(socket=path),
        )
        works = [parts.service.run(), parts.stalls.run()]
        if parts.textfile is not None:
            works.append(parts.textfile.run())
        try:
            async with beside(*works):
                status = await self._run_with(server)
        finally:
            server.close()
        await parts.host_events.finish(status, self._stop.source)
        is_interrupt = self._stop.source == signal.SIGINT.name
        return Ending(status, parts.console.is_interactive and is_interrupt)

    async def _run_with(self, server: MessageServer) -> ExitStatus:
        parts = self._parts
        invitation = server.invitation
        environment = common_environment(
            self._run,
            parts.store.run_id,
            server.path,
            invitation.text,
            self._snapshots.world_size,
        )

        server.start(lambda path: environment.update({SOCKET_VARIABLE: path}))
        spec = LaunchSpec(
            command=parts.command,
            resume_argument=parts.config.resume_arg,
            environment=environment,
            lock_descriptor=parts.lock.descriptor,
            inherited=(invitation.descriptor, *self._given),
            stop_signal=parts.config.stop_signal,
            unrelated=parts.unrelated,
        )
        try:
            self._spares.open(spec.environment, spec.inherited)
            self._journal.write(
                JournalEvent.RUN_STARTED,
                command=recorded(parts.command),
                version=__version__,
                **self._interruption(),
            )
            parts.host_events.start(parts.save_requests.save_now)
            try:
                status = await self._run_attempts(spec)
                parts.service.notify_stopping()
            finally:
                await self._wait_for_writes()
                await self._catalog.wait_for_rotations()
                await parts.hook.finish(self._stop.kill_wanted)
        finally:
            await self._spares.close()
        return status

    def _interruption(self) -> dict[str, Any]:
        """Return the last step, and its time, of an attempt whose end nobody has recorded."""
        last = self._facts.interrupted_at
        return {} if last is None else {"last_step": last.step, "last_step_time": last.time}

    # --- one attempt after the other ---------------------------------------------------------

    async def _run_attempts(self, spec: LaunchSpec) -> ExitStatus:
        try:
            while True:
                attempt = await self._start_attempt(spec)
                await self._supervise(attempt)
                verdict = await self._judge(attempt)
                status = carry_out(
                    verdict,
                    attempt,
                    self._catalog.newest,
                    self._facts.progress.of(attempt),
                    self._facts.machine,
                    self._journal,
                )
                if status is not None:
                    return status
                await self._wait_before_restart(verdict)
        except StopWantedError:
            return await self._stop_between_attempts()

    async def _start_attempt(self, spec: LaunchSpec) -> Attempt:
        """Choose what to resume from, and start the trainer; a failure here ends the run."""
        self._facts.launch_done.clear()
        try:
            attempt = await self._launch_next(spec)
        except OSError as error:
            problem = ConfigError(f"cannot start the trainer: {error}; fix this and run again")
            self._record_no_start(problem)
            raise problem from None
        except OrchestratorError as error:
            self._record_no_start(error)
            raise
        self._catalog.attempt_number = attempt.number
        if self._facts.attempt is None and self._facts.was_interrupted:
            last = self._facts.interrupted_at
            report.log_interruption(last.step if last else None, attempt.start_step)
        self._record_start(attempt)
        self._parts.budget.begin_attempt(time.time())
        if self._parts.adoption is not None:
            self._parts.adoption.begin(attempt)
        self._facts.attempt = attempt
        self._facts.machine.handle(Event.SPAWNED)
        self._facts.launch_done.set()
        self._parts.service.notify_ready()
        self._ladder.begin(attempt)
        return attempt

    async def _launch_next(self, spec: LaunchSpec) -> Attempt:
        parts, or_stop = self._parts, self._stop.or_stop
        if (limit := parts.budget.limit_reached()) is not None:
            raise LimitReachedError(limit)
        if not self._snapshots.pending:  # a sweep would remove the files of a write
            await or_stop(self._catalog.sweep())
        if self._facts.attempt is None:
            await or_stop(parts.fdstore.recover(parts.store.run_id, self._catalog, self._snapshots))
        snapshot = self._snapshots.newest_beyond(self._catalog.newest)
        checkpoint = await or_stop(self._choose(snapshot))
        if self._former_processes is not None:
            await or_stop(self._former_processes)
        await or_stop(self._spares.wait_until_ready())
        # On a full disk the last attempt has left no directory.
        number = 1 + (self._facts.attempt_number or self._run.last_attempt())
        shows_all = parts.config.show_ranks == "all" and self._snapshots.world_size > 1
        target = OutputTarget(parts.console.output, parts.config.log_size, shows_all)
        attempt = Attempt(self._run, number, checkpoint, snapshot, self._snapshots, target)
        if len(attempt.ranks) == 1:
            parts.fdstore.store(number, *attempt.main.memory_descriptors)
        await launch(spec, attempt, self._spares)
        return attempt

    async def _choose(self, resume_snapshot: Snapshot | None) -> Checkpoint | None:
        adoption = self._parts.adoption
        if adoption is not None and self._facts.attempt is None:
            await adoption.take_stock()
        chosen = await self._catalog.choose(resume_snapshot)
        if adoption is not None:
            await adoption.put_back(chosen)
        return chosen

    def _record_start(self, attempt: Attempt) -> None:
        snapshot, checkpoint = attempt.resume_snapshot, attempt.resume_checkpoint
        source = snapshot or checkpoint
        attempt.announced = time.monotonic()
        self._journal.write(
            JournalEvent.ATTEMPT_STARTED,
            attempt.number,
            pid=attempt.main.process.pid,
            resume_step=source.manifest.step if source else None,
            from_memory=snapshot is not None,
            from_spare=attempt.main.process.from_spare,
        )
        self._log.info(
            "training started",
            attempt=attempt.number,
            pid=attempt.main.process.pid,
            resume_from=(
                f"the snapshot of step {snapshot.manifest.step}"
                if snapshot
                else checkpoint.shown_path.name
                if checkpoint
                else "the beginning"
            ),
            run_dir=str(self._run.root),
        )

    def _record_no_start(self, error: OrchestratorError) -> None:
        self._facts.machine.handle(Event.GIVE_UP)
        self._journal.write(
            JournalEvent.GAVE_UP,
            cause="no attempt could begin",
            reason=str(error),
            status=error.status,
        )

    async def _supervise(self, attempt: Attempt) -> None:
        """Wait for the end of the attempt, and clean up after it."""
        memory_watches = (rank.memory_watch.run() for rank in attempt.ranks)
        async with beside(*memory_watches, self._stop_when_time_is_up()):
            await self._wait_until_over(attempt)
        self._spares.on_trainer_exit()
        attempt.ended = time.monotonic()
        remains = await attempt.clean_up()
        users = remains.seen | {rank.first_pid for rank in attempt.ranks}
        self._former_processes = asyncio.ensure_future(all_gone(remains, users))
        ignore_outcome(self._former_processes)  # where no attempt follows

    async def _stop_when_time_is_up(self) -> None:
        seconds = self._parts.budget.seconds_left()
        if seconds is not None:
            await asyncio.sleep(max(0.0, seconds))
            self._ladder.on_notice("--give-up-after")

    async def _wait_until_over(self, attempt: Attempt) -> None:
        """Wait until the attempt has ended, or was given up as unkillable.

        Raises NoThreadError, with all of it killed, when there is no way to watch it.
        """
        watches = [self._watch_command(attempt, rank) for rank in attempt.ranks]
        if len(attempt.ranks) > 1:
            watches.append(self._coordinate(attempt))
        try:
            await first_of(
                attempt.over.wait(),
                asyncio.gather(*watches),
                self._parts.hangs.watch(attempt),
            )
        except Exception:
            attempt.kill()
            raise
        finally:
            self._ladder.end()

    async def _watch_command(self, attempt: Attempt, rank: Rank) -> None:
        """Wait for the command's exit and its session's end; return when the attempt is over."""
        rank.returncode = await rank.process.wait()
        if rank.peer is not None:
            await first_of(rank.left.wait(), timeout_seconds=LAST_WORDS_SECONDS)
        if rank.peer is None:
            self._end_survivors(attempt, rank)
            if attempt.has_ended:
                self._facts.record_exit(attempt)
        elif attempt.hang is None and not self._stop.wanted.is_set():
            # A signal has ended a shell, for example, and its trainer runs on.
            self._ladder.request("the end of the shell around the trainer")
        await attempt.over.wait()

    async def _coordinate(self, attempt: Attempt) -> None:
        """Coordinate the ranks: without that, none of them could save or end."""
        await self._parts.coordinator.run(attempt)
        await attempt.over.wait()

    def _end_survivors(self, attempt: Attempt, rank: Rank) -> None:
        """Kill the other ranks where one has failed: they would wait for it in a collective."""
        if len(attempt.ranks) == 1 or attempt.first_death is not None or attempt.hang is not None:
            return
        if attempt.has_failed(rank):
            attempt.first_death = rank
            attempt.kill()

    async def _judge(self, attempt: Attempt) -> Verdict:
        """Save what the trainer has not saved itself, and reach the verdict."""
        try:
            if self._parts.adoption is not None:
                await self._parts.adoption.end(attempt)
            self._catalog.record_unknown()
            await self._save_final_snapshot(attempt)
            return await self._parts.judge.judge(attempt)
        finally:
            attempt.close()

    async def _save_final_snapshot(self, attempt: Attempt) -> None:
        if attempt.reported_status != ExitStatus.COMPLETE:
            attempt.final_snapshot = self._snapshots.newest_beyond(self._catalog.newest)
        if attempt.final_snapshot is not None:
            reason = Reason.EMERGENCY if self._stop.wanted.is_set() else Reason.CRASH
            self._snapshots.write(attempt.final_snapshot, reason)
        if attempt.resume_snapshot is not None:
            # If it turns out to be poisoned, it must be on disk to be set aside there.
            await self._snapshots.wait_for([attempt.resume_snapshot], self._stop.kill_wanted)
        if self._stop.wanted.is_set():  # it may have come while this waited
            await self._wait_for_writes()

    async def _wait_before_restart(self, verdict: Verdict) -> None:
        failures = self._parts.budget.spent
        seconds = delay_seconds(failures, must_wait=verdict.not_there_yet)
        self._facts.record_restart(verdict.diagnosis.kind)
        self._journal.write(
            JournalEvent.RESTART_SCHEDULED, delay_seconds=seconds, failures=failures
        )
        report.log_failure(
            verdict,
            report.restart_text(
                seconds, failures, self._parts.config.max_restarts, self._facts.restarts
            ),
        )
        await self._stop.or_stop(asyncio.sleep(seconds))
        self._facts.machine.handle(Event.DUE)

    async def _stop_between_attempts(self) -> ExitStatus:
        self._facts.machine.handle(Event.STOP)
        await self._wait_for_writes()
        newest = self._snapshots.newest_beyond(self._catalog.newest)
        saved = newest is None or self._snapshots.is_written(newest)
        status = ExitStatus.STOPPED_SAVED if saved else ExitStatus.STOPPED_UNSAVED
        attempt = self._facts.attempt
        ended_at = {} if attempt is None else self._facts.progress.of(attempt).facts_of_end()
        self._journal.write(JournalEvent.RUN_STOPPED, status=status, **ended_at)
        unsaved = None if saved else newest
        report.log_stop_between_attempts(self._facts, self._catalog.newest, unsaved)
        return status

    async def _wait_for_writes(self) -> None:
        await self._snapshots.wait_for(self._snapshots.pending, self._stop.kill_wanted)

    # --- signals -----------------------------------------------------------------------------

    def _on_child(self) -> None:
        attempt = self._facts.attempt
        self._parts.unrelated.reap({r.process.pid for r in attempt.ranks} if attempt else set())

    def _on_resize(self) -> None:
        attempt = self._facts.attempt
        if attempt is not None and isinstance(attempt.main.output, TerminalOutput):
            attempt.main.output.resize()
