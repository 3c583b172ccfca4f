"""Host events that may end a run: a SLURM time limit, a preemption, sleep, an empty battery."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable

import structlog

from orchestrator.config import Config
from orchestrator.exitcodes import ExitStatus
from orchestrator.hosts.laptop.battery import save_on_low_battery
from orchestrator.hosts.laptop.sleep import save_before_sleep
from orchestrator.hosts.preemption import wait_for_command, wait_for_file
from orchestrator.hosts.slurm.requeue import requeue
from orchestrator.hosts.slurm.scontrol import Job, JobQuery
from orchestrator.hosts.slurm.time_limit import TimeLimitWatch
from orchestrator.rundir.journal import Journal
from orchestrator.rundir.paths import RunDir
from orchestrator.snapshot.writer import WRITE_ALLOWANCE
from orchestrator.system.subprocesses import SubprocessRunner

STOPPED = (ExitStatus.STOPPED_SAVED, ExitStatus.STOPPED_UNSAVED)
# How the source of a stop begins that a person requested. Such a stop is never requeued.
PERSONAL_SOURCES = ("orchestrator stop", "SIGINT", "SIGHUP")


class HostEvents:
    """Turns host events into stop requests, and requeues a SLURM job after a stop."""

    def __init__(
        self,
        config: Config,
        run: RunDir,
        journal: Journal,
        last_save_seconds: Callable[[], float],
        request_stop: Callable[[str], None],
    ) -> None:
        """``last_save_seconds`` returns how long the last save of the run took; 0 if unknown.

        ``request_stop`` must do nothing if a stop is already under way.
        """
        self.subprocesses = SubprocessRunner()
        self._config = config
        self._run = run
        self._journal = journal
        self._last_save_seconds = last_save_seconds
        self._request_stop = request_stop
        job = Job.from_environment(os.environ)
        self._job_query = None if job is None else JobQuery(job, self.subprocesses)
        self._tasks: list[asyncio.Future[None]] = []

    def start(self, save: Callable[[], Awaitable[object]]) -> None:
        """Start watching; ``save`` is called before the machine sleeps or its battery is empty."""
        watchers = (save_on_low_battery, save_before_sleep)
        self._tasks += [asyncio.ensure_future(watcher(save)) for watcher in watchers]
        # The file of an earlier job, whose run continues now.
        with contextlib.suppress(OSError):
            self._run.requeue_file.unlink()
        if self._job_query is not None:
            watch = TimeLimitWatch(
                self._job_query, self._config.grace, self._save_seconds, self._request_stop
            )
            self._tasks.append(asyncio.ensure_future(watch.watch()))
        elif self._config.slurm_requeue:
            structlog.get_logger().info("--slurm-requeue has no effect outside a SLURM job")
        if (path := self._config.notice_file) is not None:
            self._stop_on(wait_for_file(path), f"the notice file {path}")
        if (command := self._config.notice_command) is not None:
            self._stop_on(wait_for_command(command, self.subprocesses), "the notice command")

    def _save_seconds(self) -> float:
        return WRITE_ALLOWANCE * self._last_save_seconds()

    def _stop_on(self, notice: Awaitable[None], source: str) -> None:
        async def wait() -> None:
            await notice
            self._request_stop(source)

        self._tasks.append(asyncio.ensure_future(wait()))

    async def finish(self, status: ExitStatus, stop_source: str | None) -> None:
        """Stop watching, and requeue the SLURM job if that is wanted after this end of the run."""
        for task in self._tasks:
            task.cancel()
        by_person = stop_source is not None and stop_source.startswith(PERSONAL_SOURCES)
        is_wanted = self._config.slurm_requeue and status in STOPPED and not by_person
        if is_wanted and self._job_query is not None:
            await requeue(self._job_query, self._run, self._journal)
