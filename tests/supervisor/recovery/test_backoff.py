"""How long the delays between attempts are."""

from orchestrator.checkpoint.position import Position
from orchestrator.supervisor.recovery.backoff import (
    FIRST_DELAY_SECONDS,
    JITTER_SECONDS,
    LONGEST_DELAY_SECONDS,
    delay_seconds,
)
from orchestrator.supervisor.recovery.failure_budget import AttemptEnd, FailureBudget
from orchestrator.supervisor.recovery.failure_kinds import Kind


def test_delays_grow_without_progress_and_start_over_with_it() -> None:
    """The first retry is immediate, later ones wait longer, and progress makes them short again."""
    budget, delays = FailureBudget(100), []
    for failure in range(8):
        if failure == 4:
            budget.refill(Position(10, 0))
        budget.record_end(AttemptEnd(Kind.EXCEPTION))
        delays.append(delay_seconds(budget.spent))
    assert delays[0] == delays[4] == FIRST_DELAY_SECONDS == 0.0
    for grows in (delays[:4], delays[4:]):
        assert grows == sorted(grows)
        assert grows[-1] >= 4.0


def test_delays_double_within_their_jitter() -> None:
    """After the second failure it is 1 s, then 2 s, then 4 s, and up to half a second more."""
    for failures, least in ((2, 1.0), (3, 2.0), (4, 4.0), (7, 32.0)):
        assert least <= delay_seconds(failures) <= least + JITTER_SECONDS


def test_delays_stay_within_the_longest() -> None:
    """However often a run has failed, the delay is the longest one and can be calculated."""
    assert [delay_seconds(failures) for failures in (20, 5000)] == [LONGEST_DELAY_SECONDS] * 2


def test_what_is_not_there_yet_gets_time() -> None:
    """The first restart waits too, and all that the default allows take a minute."""
    delays = [delay_seconds(failures, must_wait=True) for failures in range(1, 6)]
    assert delays[0] >= 2
    assert sum(delays) >= 60
