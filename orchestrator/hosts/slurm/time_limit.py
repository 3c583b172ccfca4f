"""Stops a run before the time limit of its SLURM job."""

import asyncio
import math
import time
from collections.abc import Callable

import structlog

from orchestrator.hosts.slurm.margins import stop_lead_seconds, timing_warnings
from orchestrator.hosts.slurm.scontrol import (
    SHOW_CONFIG_COMMAND,
    JobQuery,
    StopTimes,
    show_partition_command,
)

# SLURM itself checks limits twice a minute.
POLL_SECONDS = 30.0


class TimeLimitWatch:
    """Watches one job through scontrol; without scontrol only signals announce the job's end."""

    def __init__(
        self,
        query: JobQuery,
        grace_seconds: float,
        save_seconds: Callable[[], float],
        request_stop: Callable[[str], None],
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """``save_seconds`` returns how long a save may take.

        ``request_stop`` is called with the reason. Query scontrol every ``poll_seconds``.
        """
        self._query = query
        self._poll_seconds = poll_seconds
        self._grace_seconds = grace_seconds
        self._save_seconds = save_seconds
        self._request_stop = request_stop
        self._log = structlog.get_logger()

    async def watch(self) -> None:
        """Request a stop before the job's end, which may change while the job runs."""
        await self._query.update()
        await self._log_timing_warnings()
        while (seconds_left := self._seconds_until_stop()) > 0:
            await asyncio.sleep(min(seconds_left, self._poll_seconds))
            await self._query.update()
        facts = self._query.facts
        event = "preemption" if facts is not None and facts.is_preempted else "end"
        self._request_stop(f"the {event} of SLURM job {self._query.job.name}")

    def _seconds_until_stop(self) -> float:
        """Return the seconds until the stop must begin."""
        job = self._query.facts
        if job is None:
            return math.inf
        if job.is_preempted:
            return 0.0
        if job.end is None:
            return math.inf
        lead_seconds = stop_lead_seconds(job, self._grace_seconds, self._save_seconds())
        return job.end - lead_seconds - time.time()

    async def _log_timing_warnings(self) -> None:
        if (facts := self._query.facts) is None:
            return
        configuration = await self._query.ask(SHOW_CONFIG_COMMAND)
        partition = await self._query.ask(show_partition_command(facts.partition))
        times = StopTimes.parse(configuration.output, partition.output)
        for text in timing_warnings(facts, times, self._grace_seconds, self._save_seconds()):
            self._log.warning(text)
