"""The SLURM job that a run is in: stopped ahead of its end, queued again after the stop."""

import asyncio
import math
import time
from collections.abc import Callable

import structlog

from orchestrator.hosts.slurm.job import (
    CONFIGURATION,
    TIME_FORMAT,
    Job,
    JobFacts,
    StopTimes,
    partition_question,
)
from orchestrator.hosts.slurm.margins import CONTROLLER_SECONDS, misfits, seconds_ahead
from orchestrator.rundir.journal import Journal, JournalEvent, utc_now
from orchestrator.rundir.paths import RunDir
from orchestrator.system.durable import write_json
from orchestrator.system.subprocesses import Answer, SubprocessRunner

# SLURM itself looks at limits twice a minute.
ASK_SECONDS = 30.0


class SlurmJob:
    """One job, as scontrol shows it; where it does not, only signals tell of the end."""

    def __init__(
        self,
        job: Job,
        tools: SubprocessRunner,
        grace_seconds: float,
        save_seconds: Callable[[], float],
        request_stop: Callable[[str], None],
    ) -> None:
        """``save_seconds``: how long a save should be expected to take."""
        self._job = job
        self._tools = tools
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
        """Ask for a stop ahead of the job's end, which may be moved meanwhile."""
        await self._look()
        await self._tell_misfits()
        while (left := self._seconds_left()) > 0:
            await asyncio.sleep(min(left, ASK_SECONDS))
            await self._look()
        is_preempted = self._facts is not None and self._facts.is_preempted
        event = "preemption" if is_preempted else "end"
        self._request_stop(f"the {event} of SLURM job {self._job.name}")

    def _seconds_left(self) -> float:
        """Until the stop has to begin."""
        job = self._facts
        if job is None:
            return math.inf
        if job.is_preempted:
            return 0.0
        if job.end is None:
            return math.inf
        ahead = seconds_ahead(job, self._grace_seconds, self._save_seconds())
        return job.end - ahead - time.time()

    async def _tell_misfits(self) -> None:
        if self._facts is None:
            return
        configuration = await self._ask(CONFIGURATION)
        partition = await self._ask(partition_question(self._facts.partition))
        times = StopTimes.parse(configuration.output, partition.output)
        for text in misfits(self._facts, times, self._grace_seconds, self._save_seconds()):
            self._log.warning(text)

    async def requeue(self, run: RunDir, journal: Journal) -> None:
        """Have SLURM queue the job again, unless it has done so or somebody has ended the job.

        Where that cannot be, a file in the run directory says so to the batch script.
        """
        await self._look()
        if self._facts is not None and self._facts.restarts > self._job.restarts:
            self._log.info("SLURM has requeued the job itself")
            return
        if self._facts is not None and self._facts.is_cancelled:
            self._log.info("the job was cancelled: it is not requeued")
            return
        answer = await self._ask(self._job.requeue)
        if answer.status == 0:
            journal.write(JournalEvent.REQUEUED, job=self._job.name)
            self._log.info("the job is requeued", job=self._job.name)
            return
        problem = answer.problem or f"scontrol ended with {answer.status}"
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

    async def _look(self) -> None:
        """Take over what SLURM says now; without an answer the last one stands."""
        answer = await self._ask(self._job.question)
        self._facts = JobFacts.parse(answer.output) or self._facts

    async def _ask(self, words: tuple[str, ...]) -> Answer:
        return await self._tools.run(words, CONTROLLER_SECONDS, TIME_FORMAT)
