"""The job in the environment and the output of scontrol, as in SLURM 22.05."""

from typing import Any

import pytest

from orchestrator.hosts.slurm.scontrol import Job, JobFacts, StopTimes

# The beginning of the output, which is longer.
ANSWER = (
    "JobId={job} JobName=train UserId=root(0) GroupId=root(0) Priority=4294901759 Account=(null) "
    "JobState={state} Reason={reason} Dependency=(null) Requeue=1 Restarts={restarts} BatchFlag=1 "
    "Reboot=0 ExitCode=0:0 RunTime=00:00:12 TimeLimit=00:01:00 TimeMin=N/A SubmitTime=1795532600 "
    "EligibleTime=1795532600 StartTime=1795532605 EndTime={end} Deadline=N/A "
    "PreemptEligibleTime=1795532605 PreemptTime={preempted} SuspendTime=None "
    "Partition=low AllocNode:Sid=host:77 Command=/home/me/EndTime=1/job.sh"
)
RUNNING = {
    "job": "5",
    "state": "RUNNING",
    "reason": "None",
    "restarts": "0",
    "end": "1795532665",
    "preempted": "None",
}


def parse(**changes: str) -> JobFacts:
    facts = JobFacts.parse(ANSWER.format(**(RUNNING | changes)))
    assert facts is not None
    return facts


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": ""}, None),
        ({"SLURM_JOB_ID": "7"}, Job("7", 0, None)),
        (
            {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"},
            Job("7_2", 0, None),
        ),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "3"}, Job("7", 3, None)),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1795532665"}, Job("7", 0, 1795532665)),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "soon"}, Job("7", 0, None)),
    ],
)
def test_job_is_read_from_the_environment(environment: dict[str, str], job: Job | None) -> None:
    """A task of an array is named A_T, since its job id may be that of the whole array."""
    assert Job.from_environment(environment) == job


def test_facts_of_a_running_job_are_parsed() -> None:
    """State, times, restarts and partition are found in the output."""
    assert parse() == JobFacts(
        "RUNNING", "None", 0, start=1795532605, end=1795532665, partition="low", is_preempted=False
    )
    assert parse(end="Unknown").end is None
    assert parse(preempted="1795532630").is_preempted
    assert parse(restarts="2").restarts == 2


@pytest.mark.parametrize("answer", ["", "slurm_load_jobs error: Invalid job id specified"])
def test_error_of_scontrol_gives_no_facts(answer: str) -> None:
    """An error message of scontrol gives None."""
    assert JobFacts.parse(answer) is None


@pytest.mark.parametrize(
    ("state", "reason", "cancelled"),
    [
        ("RUNNING", "None", False),
        ("COMPLETING", "None", True),
        ("CANCELLED", "None", True),
        # A job that its time limit ends is requeued.
        ("COMPLETING", "TimeLimit", False),
        ("TIMEOUT", "TimeLimit", False),
    ],
)
def test_job_that_ends_without_reaching_its_limit_is_cancelled(
    state: str, reason: str, cancelled: bool
) -> None:
    """A job that ends, but not for its time limit, counts as cancelled."""
    assert parse(state=state, reason=reason).is_cancelled is cancelled


CONFIGURATION = "KeepAliveTime           = SYSTEM_DEFAULT\nKillWait                = 30 sec\n"
PARTITION = "PartitionName=low GraceTime={grace} Hidden=NO OverTimeLimit=NONE PreemptMode={mode}"


@pytest.mark.parametrize(
    ("configuration", "partition", "expected"),
    [
        ("", "", (None, None)),
        (CONFIGURATION, PARTITION.format(grace="0", mode="OFF"), (30.0, None)),
        (CONFIGURATION, PARTITION.format(grace="8", mode="REQUEUE"), (30.0, 8.0)),
    ],
)
def test_stop_times_are_parsed(
    configuration: str, partition: str, expected: tuple[Any, Any]
) -> None:
    """KillWait is the cluster's; GraceTime is the partition's, if it can be preempted."""
    times = StopTimes.parse(configuration, partition)
    assert (times.kill_wait_seconds, times.preemption_grace_seconds) == expected
