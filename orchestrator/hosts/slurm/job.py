"""The job that this process belongs to, and the answers of scontrol about it, parsed.

``scontrol`` alone knows when a job ends: the environment says so only in newer versions, and a
limit may be changed while the job runs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

SCONTROL = "scontrol"
# Points in time as seconds since 1970: without it they are local times, ambiguous once a year.
TIME_FORMAT = {"SLURM_TIME_FORMAT": "%s"}


@dataclass(frozen=True)
class Job:
    """Which job this is; ``known_end`` is what the environment says of its end, if anything."""

    name: str
    restarts: int
    known_end: int | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self | None:
        """None outside a job."""
        job_id = environment.get("SLURM_JOB_ID")
        if not job_id:
            return None
        array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
        end = environment.get("SLURM_JOB_END_TIME", "")
        restarts = environment.get("SLURM_RESTART_COUNT", "")
        return cls(
            # The job id of one task of an array is the array's own: requeueing that would bring
            # every task back.
            name=f"{array}_{task}" if array and task else job_id,
            restarts=int(restarts) if restarts.isdecimal() else 0,
            known_end=int(end) if end.isdecimal() else None,
        )

    @property
    def question(self) -> tuple[str, ...]:
        """The command whose answer JobFacts reads."""
        return (SCONTROL, "--oneliner", "show", "job", self.name)

    @property
    def requeue(self) -> tuple[str, ...]:
        """The command that has SLURM end the job and queue it again."""
        return (SCONTROL, "requeue", self.name)


@dataclass(frozen=True)
class JobFacts:
    """What ``scontrol show job`` says; ``end`` is None for a job without limit."""

    state: str
    reason: str
    restarts: int
    start: int | None
    end: int | None
    partition: str
    is_preempted: bool

    @classmethod
    def parse(cls, answer: str) -> Self | None:
        """None where this is no such answer."""
        state = _word(answer, "JobState")
        if state is None:
            return None
        return cls(
            state,
            reason=_word(answer, "Reason") or "",
            restarts=_number(answer, "Restarts") or 0,
            start=_number(answer, "StartTime"),
            end=_number(answer, "EndTime"),
            partition=_word(answer, "Partition") or "",
            is_preempted=_number(answer, "PreemptTime") is not None,
        )

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has ended the job with scancel, which requeueing it would undo.

        While its processes end that shows only in this: it runs no more, and not for its limit.
        """
        return self.state != "RUNNING" and self.reason != "TimeLimit"


CONFIGURATION = (SCONTROL, "show", "config")


def partition_question(name: str) -> tuple[str, ...]:
    """The command whose answer StopTimes reads."""
    return (SCONTROL, "--oneliner", "show", "partition", name)


@dataclass(frozen=True)
class StopTimes:
    """How long the cluster waits after SIGTERM before SIGKILL, None where it does not say.

    A preempted job is told ``preemption_grace_seconds`` before that.
    """

    kill_wait_seconds: float | None
    preemption_grace_seconds: float | None

    @classmethod
    def parse(cls, configuration: str, partition: str) -> Self:
        """From the answers about the cluster's configuration and the job's partition."""
        wait = re.search(r"^KillWait\s*=\s*(\d+)", configuration, re.MULTILINE)
        grace = _word(partition, "GraceTime")
        mode = _word(partition, "PreemptMode")
        preempts = mode is not None and mode != "OFF"
        return cls(
            kill_wait_seconds=float(wait[1]) if wait else None,
            preemption_grace_seconds=(
                float(grace) if preempts and grace and grace.isdecimal() else None
            ),
        )


def _word(answer: str, key: str) -> str | None:
    found = re.search(rf"(?:^|\s){key}=(\S+)", answer)
    return found[1] if found else None


def _number(answer: str, key: str) -> int | None:
    """A count or a point in time; None for Unknown, None and the like."""
    word = _word(answer, key)
    return int(word) if word and word.isdecimal() else None
