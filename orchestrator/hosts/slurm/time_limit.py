"""Stops a run before the time limit of its SLURM job, and requeues the job after the stop."""

import asyncio
import math
import time
from collections.abc import Callable

import structlog

from orchestrator.hosts.slurm.job import (
    SHOW_CONFIG_COMMAND,
    TIME_FORMAT,
    Job,
    JobFacts,
    StopTimes,
    show_partition_command,
)
from orchestrator.hosts.slurm.margins import CONTROLLER_SECONDS, stop_lead_seconds, timing_warnings
from orchestrator.rundir.journal import Journal, JournalEvent, utc_now
from orchestrator.rundir.paths import RunDir
from orchestrator.system.durable import write_json
from orchestrator.system.subprocesses import CommandResult, SubprocessRunner

# SLURM itself checks limits twice a minute.
POLL_SECONDS = 30.0


class SlurmJobMonitor:
    """Watches one job through scontrol; without scontrol only signals announce the job's end."""

    def __init__(
        self,
        job: Job,
        subprocesses: SubprocessRunner,
        grace_seconds: float,
        save_seconds: Callable[[], float],
        request_stop: Callable[[str], None],
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """``save_seconds`` returns how long a save may take.

        ``request_stop`` is called with the reason. Query scontrol every ``poll_seconds``.
        """
        self._job = job
        self._subprocesses = subprocesses
        self._poll_seconds = poll_seconds
        self._grace_seconds = grace_seconds
        self._save_seconds = save_seconds
        self._request_stop = request_stop
        self._log = structlog.get_logger()
        self._facts = (
            None
            if job.known_end is None
            else JobFacts("RUNNING", "", job.restarts, None, job.known_end, "", False)
        )

    async def watch(self) -> None:
        """Request a stop before the job's end, which may change while the job runs."""
        await self._update_facts()
        await self._log_timing_warnings()
        while (seconds_left := self._seconds_until_stop()) > 0:
            await asyncio.sleep(min(seconds_left, self._poll_seconds))
            await self._update_facts()
        is_preempted = self._facts is not None and self._facts.is_preempted
        event = "preemption" if is_preempted else "end"
        self._request_stop(f"the {event} of SLURM job {self._job.name}")

    def _seconds_until_stop(self) -> float:
        """Return the seconds until the stop must begin."""
        job = self._facts
        if job is None:
            return math.inf
        if job.is_preempted:
            return 0.0
        if job.end is None:
            return math.inf
        lead_seconds = stop_lead_seconds(job, self._grace_seconds, self._save_seconds())
        return job.end - lead_seconds - time.time()

    async def _log_timing_warnings(self) -> None:
        if self._facts is None:
            return
        configuration = await self._ask(SHOW_CONFIG_COMMAND)
        partition = await self._ask(show_partition_command(self._facts.partition))
        times = StopTimes.parse(configuration.output, partition.output)
        for text in timing_warnings(self._facts, times, self._grace_seconds, self._save_seconds()):
            self._log.warning(text)

    async def requeue(self, run: RunDir, journal: Journal) -> None:
        """Requeue the job, unless SLURM has requeued it already or a user has cancelled it.

        If the requeue fails, write a file in the run directory for the batch script.
        """
        await self._update_facts()
        if self._facts is not None and self._facts.restarts > self._job.restarts:
            self._log.info("SLURM has requeued the job itself")
            return
        if self._facts is not None and self._facts.is_cancelled:
            self._log.info("the job was cancelled: it is not requeued")
            return
        result = await self._ask(self._job.requeue_command)
        if result.status == 0:
            journal.write(JournalEvent.REQUEUED, job=self._job.name)
            self._log.info("the job is requeued", job=self._job.name)
            return
        problem = result.problem or f"scontrol ended with {result.status}"
        journal.write(JournalEvent.REQUEUED, job=self._job.name, problem=problem)
        self._log.warning(
            "cannot requeue the job; the batch script can do so, or RequeueExit",
            problem=problem,
            marker=str(run.requeue_file),
        )
        marker = {"time": utc_now(), "job": self._job.name, "problem": problem}
        try:
            write_json(run.requeue_file, marker)
        except OSError as error:
            self._log.warning("cannot write the marker for a requeue", problem=error.strerror)

    async def _update_facts(self) -> None:
        """Query scontrol; without a result the last facts stay valid."""
        result = await self._ask(self._job.show_command)
        self._facts = JobFacts.parse(result.output) or self._facts

    async def _ask(self, words: tuple[str, ...]) -> CommandResult:
        return await self._subprocesses.run(words, CONTROLLER_SECONDS, TIME_FORMAT)
