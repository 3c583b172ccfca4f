"""What a control page tells about a trainer's time."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ipc.control_page import ControlPage, Field
from orchestrator.ipc.training_time import training_time

SECOND = 1_000_000_000
FIELDS = (Field.TRAINING_NS, Field.SAVING_NS, Field.SAVED_NS, Field.HEARTBEAT_NS)


@pytest.fixture(scope="module")
def page() -> Iterator[ControlPage]:
    page, descriptor = ControlPage.create()
    yield page
    os.close(descriptor)


def fill(page: ControlPage, *values: int) -> None:
    for field, value in zip(FIELDS, values, strict=True):
        page.values[field] = value


def test_parts_of_a_trainer(page: ControlPage) -> None:
    """It starts, trains and saves; what follows the last safe point or save is not finished."""
    fill(page, 102 * SECOND, 3 * SECOND, 140 * SECOND, 139 * SECOND)
    assert training_time(page, 100.0, 145.0) == {
        "starting_seconds": 2,
        "training_seconds": 35,
        "saving_seconds": 3,
        "unfinished_seconds": 5,
    }


def test_nothing_is_known_before_the_training(page: ControlPage) -> None:
    """A trainer that has not begun has no parts."""
    fill(page, 0, 0, 0, 0)
    assert set(training_time(page, 100.0, 145.0).values()) == {None}


@given(
    st.tuples(*[st.integers(-(1 << 63), (1 << 63) - 1)] * 4),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
)
def test_parts_add_up_whatever_is_on_the_page(
    page: ControlPage, values: tuple[int, ...], began: float, seconds: float
) -> None:
    """A broken trainer may write anything; no part is negative, and they add up to the whole."""
    fill(page, *values)
    parts = [part for part in training_time(page, began, began + seconds).values() if part]
    assert all(part > 0 for part in parts)
    if values[0]:
        assert sum(parts) == pytest.approx(seconds, abs=0.003)
