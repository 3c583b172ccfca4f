"""What around the run may end it: a SLURM job, a machine about to be taken away, or to sleep."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from orchestrator.config import Config
from orchestrator.exitcodes import ExitStatus
from orchestrator.hosts.laptop.battery import save_before_it_is_empty
from orchestrator.hosts.laptop.sleep import save_before_sleep
from orchestrator.hosts.preemption import command_agrees, file_appears
from orchestrator.hosts.slurm.job import Job
from orchestrator.hosts.slurm.time_limit import SlurmJob
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import RunDir
from orchestrator.snapshot.writer import WRITE_ALLOWANCE
from orchestrator.system.subprocesses import SubprocessRunner

STOPPED = (ExitStatus.STOPPED_SAVED, ExitStatus.STOPPED_UNSAVED)
# Beginnings of what asked for a stop that nobody else is to undo.
BY_A_PERSON = ("orchestrator stop", "SIGINT", "SIGHUP")


class HostEvents:
    """Turns what comes from there into a stop, and queues the job again after it."""

    def __init__(
        self,
        config: Config,
        run: RunDir,
        journal: Journal,
        events: list[dict[str, Any]],
        save_seconds: Callable[[], float],
        request_stop: Callable[[str], None],
    ) -> None:
        """``events`` are the journal's so far, from which it is known what saving took.

        ``save_seconds`` says what a save may take now, 0 before the first; ``request_stop`` must
        not insist where a stop is under way.
        """
        self.tools = SubprocessRunner()
        self._config = config
        self._run = run
        self._journal = journal
        self._request_stop = request_stop
        earlier = WRITE_ALLOWANCE * _last_save_seconds(events)
        self._job: SlurmJob | None = None
        if (job := Job.from_environment(os.environ)) is not None:
            self._job = SlurmJob(
                job, self.tools, config.grace, lambda: save_seconds() or earlier, request_stop
            )
        self._tasks: list[asyncio.Future[None]] = []

    def begin(self, save: Callable[[], Awaitable[object]]) -> None:
        """Watch from now on; ``save`` is for a machine that may be gone soon, or asleep."""
        guards = (save_before_it_is_empty, save_before_sleep)
        self._tasks += [asyncio.ensure_future(guard(save)) for guard in guards]
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


def _last_save_seconds(events: list[dict[str, Any]]) -> float:
    """How long the last checkpoint took whose time is known."""
    for event in reversed(events):
        seconds = event.get("seconds")
        if event["event"] == JournalEvent.CHECKPOINT_PUBLISHED and isinstance(seconds, float):
            return seconds
    return 0.0
