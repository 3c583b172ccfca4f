"""Which seconds of training count, after any number of returns to earlier steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.rundir.time_ledger import MOST_STRETCHES, RECENT_ATTEMPTS, Part, TimeLedger


def train(ledger: TimeLedger, attempt: int, first_step: int, last_step: int) -> None:
    """Add an attempt that takes a second for each step."""
    ledger.begin_share(attempt)
    ledger.roll_back(first_step)
    ledger.add({Part.TRAINING: last_step - first_step})
    ledger.count(first_step, last_step, last_step - first_step)


def test_steps_that_several_attempts_have_made_are_lost_in_each_of_them() -> None:
    """A return beyond the begin of an attempt takes the end of the one before it too."""
    ledger = TimeLedger()
    train(ledger, 1, 0, 10)
    train(ledger, 2, 10, 30)
    train(ledger, 3, 6, 7)
    lost = [share.seconds.get(Part.DONE_TWICE, 0) for share in ledger.shares]
    assert lost == [4, 20, 0]
    assert ledger.seconds == {Part.TRAINING: 7, Part.DONE_TWICE: 24}


def test_ledger_is_bounded() -> None:
    """Of many attempts the newest have shares, and the oldest stretches are one."""
    ledger = TimeLedger()
    for number in range(1000):
        train(ledger, number, number, number + 1)
    assert len(ledger.shares) == RECENT_ATTEMPTS
    assert len(ledger.stretches) == MOST_STRETCHES
    train(ledger, 1000, 100, 100)
    assert ledger.seconds == {
        Part.TRAINING: pytest.approx(100),
        Part.DONE_TWICE: pytest.approx(900),
    }


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 100)), max_size=100))
def test_what_counts_is_the_time_of_the_furthest_steps(lives: list[tuple[int, int]]) -> None:
    """With a second for each step, as many seconds count as steps are not done again."""
    ledger, counted, trained = TimeLedger(), 0, 0
    for number, (first_step, steps) in enumerate(lives):
        first_step = min(first_step, counted)  # no attempt resumes from where none has been
        counted, trained = first_step + steps, trained + steps
        train(ledger, number, first_step, counted)
    assert ledger.seconds.get(Part.TRAINING, 0) == pytest.approx(counted)
    assert ledger.seconds.get(Part.DONE_TWICE, 0) == pytest.approx(trained - counted)
