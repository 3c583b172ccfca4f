"""The recent pace of a run."""

import pytest

from orchestrator.supervisor.recent_pace import WINDOW_SECONDS, RecentPace


def reported(*reports: tuple[float, int]) -> RecentPace:
    """The pace after reports of a time and a step."""
    pace = RecentPace()
    for report in reports:
        pace.report(*report)
    return pace


def steady(begin: float, seconds: int, step: int, pace: int) -> list[tuple[float, int]]:
    """A report for each second of a training that has ``pace`` steps a second."""
    return [(begin + s, step + pace * s) for s in range(seconds + 1)]


def test_pace_is_unknown_before_time_has_passed() -> None:
    """One report says nothing, and neither do two in the same instant."""
    assert reported().steps_per_second is None
    assert reported((5, 3)).steps_per_second is None
    assert reported((5, 3), (5, 9)).steps_per_second is None


@pytest.mark.parametrize("seconds", [1, 9, 10, 11, 25, 3000])
def test_steady_pace_is_reported_exactly(seconds: int) -> None:
    """However many reports there are, the newest one counts."""
    assert reported(*steady(100, seconds, 7, 4)).steps_per_second == 4


def test_run_that_resumes_in_the_middle_has_no_absurd_pace() -> None:
    """The steps before the first report were not trained in this time."""
    assert reported(*steady(100, 2, 1_000_000, 3)).steps_per_second == 3


def test_restart_counts_as_time() -> None:
    """20 steps, 20 seconds without a trainer, 20 steps: 40 in 60 seconds."""
    pace = reported(*steady(0, 20, 0, 1), *steady(40, 20, 20, 1))
    assert pace.steps_per_second == pytest.approx(40 / 60)


def test_steps_that_are_done_again_count_once() -> None:
    """A trainer that goes on ten steps earlier needs the time twice for the same steps."""
    pace = reported(*steady(0, 20, 0, 1), *steady(20, 20, 10, 1))
    assert pace.steps_per_second == pytest.approx(30 / 40)


def test_run_that_begins_anew_forgets_its_pace() -> None:
    """Steps before all that was reported cannot be compared with it."""
    pace = reported(*steady(0, 20, 500, 1), (30, 0))
    assert pace.steps_per_second is None
    for report in steady(31, 10, 2, 2):
        pace.report(*report)
    assert pace.steps_per_second == pytest.approx(2)


def test_old_pace_is_forgotten() -> None:
    """A run that has become slower has its new pace an hour later."""
    end = int(WINDOW_SECONDS)
    pace = reported(*steady(0, 1000, 0, 100), *steady(1001, end + 20, 100_000, 1))
    assert pace.steps_per_second == pytest.approx(1, rel=0.01)


def test_step_that_takes_hours_has_a_pace() -> None:
    """The two newest reports count, however far they are apart."""
    hours = [(number * 7200.0, number) for number in range(4)]
    assert reported(*hours).steps_per_second == pytest.approx(1 / 7200)


def test_night_without_a_trainer_is_forgotten() -> None:
    """A pause that is longer than the hour counts no more once there are two new reports."""
    pace = reported(*steady(0, 20, 0, 1), *steady(40_000, 10, 20, 1))
    assert pace.steps_per_second == pytest.approx(1)


def test_pace_that_is_not_above_zero_is_unknown() -> None:
    """Reports of an evaluation alone give no time that is left."""
    assert reported((0, 5), (30, 5), (60, 5)).steps_per_second is None


def test_reports_do_not_add_up_over_a_long_run() -> None:
    """The memory of a pace is bounded, whatever a trainer reports."""
    pace = reported(*((number / 100, number) for number in range(100_000)))
    assert len(pace._reports) < WINDOW_SECONDS / 10 + 3
