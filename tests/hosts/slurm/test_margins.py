"""How long before a job's end a run stops, and warnings about short times."""

import pytest

from orchestrator.hosts.slurm.margins import stop_lead_seconds, timing_warnings
from orchestrator.hosts.slurm.scontrol import CONTROLLER_SECONDS, JobFacts, StopTimes

HOUR = 3600


def job(seconds: int | None) -> JobFacts:
    """Return a job with a time limit of ``seconds``."""
    end = None if seconds is None else 1000 + seconds
    return JobFacts("RUNNING", "None", 0, 1000, end, "main", is_preempted=False)


@pytest.mark.parametrize(
    ("limit", "grace", "save", "lead"),
    [
        (HOUR, 30, 0, 30 + CONTROLLER_SECONDS),
        # A save may take longer than the grace period.
        (HOUR, 30, 50, 50 + CONTROLLER_SECONDS),
        (HOUR, 30, 5, 30 + CONTROLLER_SECONDS),
        (None, 30, 5, 30 + CONTROLLER_SECONDS),
        # Half of a short job is for training.
        (60, 30, 5, 30),
        (60, 600, 5, 30),
    ],
)
def test_stop_lead_is_the_grace_period_or_the_save_plus_a_margin(
    limit: int | None, grace: float, save: float, lead: float
) -> None:
    """The longer of grace period and save counts, plus the time for the controller."""
    assert stop_lead_seconds(job(limit), grace, save) == lead


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
def test_times_that_are_too_short_are_reported(
    limit: int | None,
    kill_wait: float | None,
    preemption: float | None,
    grace: float,
    save: float,
    expected: list[str],
) -> None:
    """Each time that is too short gives one warning with both figures."""
    warnings = timing_warnings(job(limit), StopTimes(kill_wait, preemption), grace, save)
    assert len(warnings) == len(expected)
    for text, part in zip(warnings, expected, strict=True):
        assert part in text
