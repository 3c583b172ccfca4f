"""When checkpoints and snapshots are due."""

import pytest

from orchestrator.config import Every
from orchestrator.pace.save_schedule import NEVER, Schedule
from orchestrator.pace.snapshot_pace import LEARNING, SnapshotPace
from tests.pace.support import Clock


def test_pace_keeps_to_its_budget() -> None:
    """A cost of 10 ms at 1% is due again after a second."""
    clock = Clock()
    pace = SnapshotPace(0.01, clock_ns=clock)
    pace.record(5.0)
    for _ in range(LEARNING):
        pace.record(0.01)
    assert pace.interval_seconds == pytest.approx(1.0)
    assert pace.next_ns == pytest.approx(101e9)


def test_first_snapshots_follow_soon() -> None:
    """One that was taken in a bad moment does not stretch the interval for long."""
    clock = Clock()
    pace = SnapshotPace(0.01, clock_ns=clock)
    for seconds in (5.0, 0.3):
        pace.record(seconds)
    assert pace.next_ns == pytest.approx(103e9)
    for _ in range(LEARNING):
        pace.record(0.01)
    assert pace.interval_seconds == pytest.approx(1.0)


def test_learned_cost_holds_in_the_next_process() -> None:
    """The next process begins with the interval of that cost, after a few that follow soon."""
    clock = Clock()
    pace = SnapshotPace(0.01, 0.04, clock_ns=clock)
    assert pace.next_ns == 0
    for _ in range(LEARNING):
        pace.record(0.3)
        assert pace.next_ns == pytest.approx(100.4e9)
    pace = SnapshotPace(0.01, 0.04, clock_ns=clock)
    for seconds in (5.0, 0.3, 0.04, 0.04):
        pace.record(seconds)
    assert pace.next_ns == pytest.approx(104e9)
    assert SnapshotPace(None, 0.04, clock_ns=clock).next_ns == NEVER


def test_first_snapshot_is_not_measured() -> None:
    """The first one lays out and faults pages in: the second is due at once."""
    pace = SnapshotPace(0.01, clock_ns=Clock())
    assert pace.next_ns == 0
    pace.record(3.0)
    assert pace.next_ns == 0


def test_pace_ignores_noise() -> None:
    """The interval stays while the cost moves by less than a quarter, and follows what lasts."""
    pace = SnapshotPace(0.01, clock_ns=Clock())
    for seconds in (0.0, 0.010, 0.011, 0.009, 0.012):
        pace.record(seconds)
        assert pace.interval_seconds in (None, pytest.approx(1.0))
    for _ in range(20):
        pace.record(0.1)
    assert pace.interval_seconds == pytest.approx(10.0, rel=0.3)


def test_snapshots_without_a_budget_are_never_due() -> None:
    """Snapshots that are off are never due, whatever others cost."""
    pace = SnapshotPace(None)
    pace.record(0.1)
    pace.record(0.1)
    assert pace.next_ns == NEVER
    assert pace.interval_seconds is None


def test_failed_writes_are_retried_ever_more_rarely() -> None:
    """The delay doubles from failure to failure, and a success makes it short again."""
    schedule = Schedule(Every(500, "steps"))
    schedule.begin(0, 0)
    delays = []
    for _ in range(3):
        schedule.record_failure()
        before = schedule.next_time_ns
        schedule.begin(1, 0)
        delays.append(before)
    schedule.record_failure()
    assert delays[0] < delays[1] < delays[2] < schedule.next_time_ns
    schedule.record_success()
    schedule.record_failure()
    assert schedule.next_time_ns < delays[2]


def test_slow_disk_stretches_an_interval_and_not_a_step_count() -> None:
    """A time between checkpoints grows with what writing costs; named places stay."""
    by_time, by_steps = Schedule(Every(1, "seconds")), Schedule(Every(10, "steps"))
    for schedule in (by_time, by_steps):
        schedule.begin(3, 0, least_seconds=1000.0)
    fresh = Schedule(Every(1, "seconds"))
    fresh.begin(3, 0)
    assert by_time.next_time_ns - fresh.next_time_ns > 900e9
    assert by_steps.next_step == 10
