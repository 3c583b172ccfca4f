"""The SLURM job of this process, and what scontrol tells about it.

Only ``scontrol`` reliably knows when a job ends: the environment contains the end only in newer
versions of SLURM, and a limit may change while the job runs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from orchestrator.system.subprocesses import CommandResult, SubprocessRunner

SCONTROL = "scontrol"
# A last query for the end and a requeue each wait this long for SLURM's controller.
CONTROLLER_SECONDS = 10.0
# Makes scontrol print seconds since 1970 instead of local times, which are ambiguous once a year.
TIME_FORMAT = {"SLURM_TIME_FORMAT": "%s"}


@dataclass(frozen=True)
class Job:
    """A job; ``known_end`` is its end in the environment, in seconds since 1970, or None."""

    name: str
    restarts: int
    known_end: int | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self | None:
        """Return the job of this process; None outside a job."""
        job_id = environment.get("SLURM_JOB_ID")
        if not job_id:
            return None
        array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
        end = environment.get("SLURM_JOB_END_TIME", "")
        restarts = environment.get("SLURM_RESTART_COUNT", "")
        return cls(
            # One task of an array has the job id of the whole array, and a requeue by that id
            # would restart every task.
            name=f"{array}_{task}" if array and task else job_id,
            restarts=int(restarts) if restarts.isdecimal() else 0,
            known_end=int(end) if end.isdecimal() else None,
        )

    @property
    def show_command(self) -> tuple[str, ...]:
        """The command whose output ``JobFacts.parse`` reads."""
        return (SCONTROL, "--oneliner", "show", "job", self.name)

    @property
    def requeue_command(self) -> tuple[str, ...]:
        """The command that makes SLURM end the job and queue it again."""
        return (SCONTROL, "requeue", self.name)


@dataclass(frozen=True)
class JobFacts:
    """The output of ``scontrol show job``; times are in seconds since 1970.

    ``end`` is None for a job without a time limit.
    """

    state: str
    reason: str
    restarts: int
    start: int | None
    end: int | None
    partition: str
    is_preempted: bool

    @classmethod
    def parse(cls, output: str) -> Self | None:
        """Parse the output; None if it does not describe a job."""
        state = _value(output, "JobState")
        if state is None:
            return None
        return cls(
            state,
            reason=_value(output, "Reason") or "",
            restarts=_number(output, "Restarts") or 0,
            start=_number(output, "StartTime"),
            end=_number(output, "EndTime"),
            partition=_value(output, "Partition") or "",
            is_preempted=_number(output, "PreemptTime") is not None,
        )

    @property
    def is_cancelled(self) -> bool:
        """Whether the job was ended with scancel, so that a requeue would undo a user's decision.

        While the job's processes end, the only sign of scancel is that the job is not running and
        that the time limit is not the reason.
        """
        return self.state != "RUNNING" and self.reason != "TimeLimit"


class JobQuery:
    """Asks scontrol about one job; ``facts`` is what it said last, None before its first answer."""

    def __init__(self, job: Job, subprocesses: SubprocessRunner) -> None:
        self.job = job
        self.facts = (
            None
            if job.known_end is None
            else JobFacts("RUNNING", "", job.restarts, None, job.known_end, "", False)
        )
        self._subprocesses = subprocesses

    async def update(self) -> None:
        """Ask for the facts; without an answer the last ones stay valid."""
        result = await self.ask(self.job.show_command)
        self.facts = JobFacts.parse(result.output) or self.facts

    async def ask(self, words: tuple[str, ...]) -> CommandResult:
        """Run a command of SLURM."""
        return await self._subprocesses.run(words, CONTROLLER_SECONDS, TIME_FORMAT)


SHOW_CONFIG_COMMAND = (SCONTROL, "show", "config")


def show_partition_command(name: str) -> tuple[str, ...]:
    """Return the command whose output ``StopTimes.parse`` reads."""
    return (SCONTROL, "--oneliner", "show", "partition", name)


@dataclass(frozen=True)
class StopTimes:
    """The time that the cluster gives a job between SIGTERM and SIGKILL; None if unknown.

    A preempted job gets a notice ``preemption_grace_seconds`` earlier.
    """

    kill_wait_seconds: float | None
    preemption_grace_seconds: float | None

    @classmethod
    def parse(cls, configuration: str, partition: str) -> Self:
        """Parse the cluster's configuration and the job's partition."""
        wait = re.search(r"^KillWait\s*=\s*(\d+)", configuration, re.MULTILINE)
        grace = _value(partition, "GraceTime")
        mode = _value(partition, "PreemptMode")
        preempts = mode is not None and mode != "OFF"
        return cls(
            kill_wait_seconds=float(wait[1]) if wait else None,
            preemption_grace_seconds=(
                float(grace) if preempts and grace and grace.isdecimal() else None
            ),
        )


def _value(output: str, key: str) -> str | None:
    found = re.search(rf"(?:^|\s){key}=(\S+)", output)
    return found[1] if found else None


def _number(output: str, key: str) -> int | None:
    """Return a count or a time; None for a value such as Unknown."""
    value = _value(output, key)
    return int(value) if value and value.isdecimal() else None
