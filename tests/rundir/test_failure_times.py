"""How long a run trained before its failures, as the journal tells."""

from typing import Any

from orchestrator.rundir.failure_times import RECENT_FAILURES, FailureRate, FailureTimes
from orchestrator.rundir.journal import JournalEvent
from tests.rundir.support import history_of


def end(outcome: str, seconds: Any, *, trained: bool = True) -> dict[str, Any]:
    return {
        "event": JournalEvent.ATTEMPT_EXITED,
        "attempt": 1,
        "outcome": outcome,
        "seconds": seconds,
        "reached_safe_point": trained,
    }


def test_run_without_failures_has_no_rate() -> None:
    """Stops and completion are no failures."""
    assert history_of([end("stopped", 5.0), end("complete", 5.0)]).failure_times.rate() is None


def test_training_between_failures_counts_whole() -> None:
    """What trained in attempts that were stopped lies between two failures as well."""
    ends = [end("failed", 5.0), end("stopped", 7.0), end("failed", 1.0), end("stopped", 2.0)]
    assert history_of(ends).failure_times.rate() == FailureRate(2, 15.0)


def test_attempt_that_never_trained_does_not_count() -> None:
    """A script that fails at its start says nothing about how often a training fails."""
    assert history_of([end("failed", 0.5, trained=False)]).failure_times.rate() is None


def test_newest_failures_count() -> None:
    """What was long ago is forgotten."""
    times = FailureTimes()
    for seconds in [1000.0] * 5 + [1.0] * RECENT_FAILURES:
        times.add(end("failed", seconds))
    assert times.rate() == FailureRate(RECENT_FAILURES, float(RECENT_FAILURES))


def test_wrong_types_are_passed_over() -> None:
    """Another program may have written anything into the journal."""
    for seconds in (None, "5", -1.0, float("nan"), 1e300):
        assert history_of([end("failed", seconds)]).failure_times.rate() is None
