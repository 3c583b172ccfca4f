"""What around the run may end it: a SLURM job, a machine that is about to be taken away."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable

import structlog

from orchestrator.config import Config
from orchestrator.exitcodes import ExitStatus
from orchestrator.journal import Journal
from orchestrator.rundir import RunDir
from orchestrator.slurm.job import Job
from orchestrator.supervisor.notices import command_agrees, file_appears
from orchestrator.supervisor.slurm_job import SlurmJob
from orchestrator.supervisor.tools import Tools

STOPPED = (ExitStatus.STOPPED_SAVED, ExitStatus.STOPPED_UNSAVED)
# Beginnings of what asked for a stop that nobody else is to undo.
BY_A_PERSON = ("orchestrator stop", "SIGINT", "SIGHUP")


class Surroundings:
    """Turns what comes from there into a stop, and queues the job again after it."""

    def __init__(
        self,
        config: Config,
        run: RunDir,
        journal: Journal,
        save_seconds: Callable[[], float],
        request_stop: Callable[[str], None],
    ) -> None:
        """``request_stop`` must not insist where a stop is under way."""
        self.tools = Tools()
        self._config = config
        self._run = run
        self._journal = journal
        self._request_stop = request_stop
        job = Job.from_environment(os.environ)
        self._job = (
            SlurmJob(job, self.tools, config.grace, save_seconds, request_stop) if job else None
        )
        self._tasks: list[asyncio.Future[None]] = []

    def begin(self) -> None:
        """Watch from now on."""
        # Of an earlier life, which has been run again now.
        with contextlib.suppress(OSError):
            self._run.requeue_file.unlink()
        if self._job is not None:
            self._tasks.append(asyncio.ensure_future(self._job.watch()))
        elif self._config.slurm_requeue:
            structlog.get_logger().info("--slurm-requeue has no effect outside a SLURM job")
        if (path := self._config.notice_file) is not None:
            self._stop_on(file_appears(path), f"the notice file {path}")
        if (command := self._config.notice_command) is not None:
            self._stop_on(command_agrees(command, self.tools), "the notice command")

    def _stop_on(self, notice: Awaitable[None], source: str) -> None:
        async def wait() -> None:
            await notice
            self._request_stop(source)

        self._tasks.append(asyncio.ensure_future(wait()))

    async def end(self, status: ExitStatus, stop_source: str | None) -> None:
        """The run has ended like this, and everything is saved that can be."""
        for task in self._tasks:
            task.cancel()
        by_a_person = stop_source is not None and stop_source.startswith(BY_A_PERSON)
        if self._config.slurm_requeue and self._job and status in STOPPED and not by_a_person:
            await self._job.requeue(self._run, self._journal)
