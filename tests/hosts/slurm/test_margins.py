"""How far ahead of a job's end it stops, and what is said where that cannot fit."""

import pytest

from orchestrator.hosts.slurm.job import JobFacts, StopTimes
from orchestrator.hosts.slurm.margins import CONTROLLER_SECONDS, misfits, seconds_ahead

HOUR = 3600


def job(seconds: int | None) -> JobFacts:
    """One that may run for so long."""
    end = None if seconds is None else 1000 + seconds
    return JobFacts("RUNNING", "None", 0, 1000, end, "main", is_preempted=False)


@pytest.mark.parametrize(
    ("limit", "grace", "save", "ahead"),
    [
        (HOUR, 30, 0, 30 + CONTROLLER_SECONDS),
        # A save that takes longer than the grace period needs its time all the same.
        (HOUR, 30, 50, 50 + CONTROLLER_SECONDS),
        (HOUR, 30, 5, 30 + CONTROLLER_SECONDS),
        (None, 30, 5, 30 + CONTROLLER_SECONDS),
        # Of a short job half is for training.
        (60, 30, 5, 30),
        (60, 600, 5, 30),
    ],
)
def test_seconds_ahead(limit: int | None, grace: float, save: float, ahead: float) -> None:
    """The longer of grace period and save, and the time that the controller takes to answer."""
    assert seconds_ahead(job(limit), grace, save) == ahead


@pytest.mark.parametrize(
    ("limit", "kill_wait", "preemption", "grace", "save", "expected"),
    [
        (HOUR, 30, None, 30, 5, []),
        (HOUR, None, None, 300, 5, []),
        (None, 30, None, 30, 5, []),
        (60, 30, None, 30, 5, ["may run for 1 min 0 s"]),
        (HOUR, 30, None, 60, 5, ["(KillWait), which is less than --grace, 1 min 0 s"]),
        (HOUR, 30, 120, 60, 5, ["a preemption gives 2 min 0 s more"]),
        (HOUR, 30, None, 30, 45, ["saving may take 45 s"]),
        (60, 5, None, 30, 45, ["may run for", "set --grace 5s", "saving may take 45 s"]),
    ],
)
def test_misfits(
    limit: int | None,
    kill_wait: float | None,
    preemption: float | None,
    grace: float,
    save: float,
    expected: list[str],
) -> None:
    """Each pair of times that cannot fit is told once, with both figures."""
    found = misfits(job(limit), StopTimes(kill_wait, preemption), grace, save)
    assert len(found) == len(expected)
    for text, part in zip(found, expected, strict=True):
        assert part in text
