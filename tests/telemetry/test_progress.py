"""How far a run is, in numbers and in words."""

import json
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import pytest

from orchestrator.system.units import LONGEST_SECONDS
from orchestrator.telemetry.progress import Progress, end_text, percent_text, progress_text

TOP = (1 << 63) - 1


def test_time_left_follows_from_the_steps_left_and_the_pace() -> None:
    """150 steps at half a step a second take 300 seconds."""
    progress = Progress.of(50, 1, 200, 4, 0.5)
    assert progress == Progress(50, 200, 1, 4, 25.0, 0.5, 300.0)


@pytest.mark.parametrize(
    ("counts", "percent"),
    [
        ((5, 1, 40, 4), 12.5),  # the steps are finer than the epochs
        ((5, 1, None, 4), 25.0),
        ((5, 1, None, None), None),
        ((None, None, 40, 4), None),
        ((0, 0, 0, 0), None),
        ((999_999, 9, 1_000_000, 10), 99.99),  # 100 is the end
        ((50, 5, 40, 4), 100.0),  # a script has lowered its number of steps
    ],
)
def test_percent_is_that_of_the_steps_or_else_of_the_epochs(
    counts: tuple[Any, ...], percent: float | None
) -> None:
    """Epochs stand in where the number of steps is unknown; without totals it is unknown."""
    assert Progress.of(*counts).percent == percent


def test_time_left_is_unknown_without_a_total_or_a_pace() -> None:
    """A total of epochs alone says nothing about the time."""
    assert Progress.of(5, 1, None, 4, 2.0).seconds_left is None
    assert Progress.of(5, 1, 40, 4).seconds_left is None


def test_time_left_is_never_negative_nor_beyond_all_bounds() -> None:
    """A run beyond its total has no time left, and a standstill not more than a clock can hold."""
    assert Progress.of(50, 1, 40, 4, 2.0).seconds_left == 0
    assert Progress.of(1, 1, TOP, 4, 1e-9).seconds_left == LONGEST_SECONDS


@pytest.mark.parametrize("value", [None, -1, 0, 5, TOP, 10**400])
@pytest.mark.parametrize("key", ["step", "epoch", "total_steps", "total_epochs"])
def test_any_count_in_a_journal_can_be_shown(key: str, value: Any) -> None:
    """Another program may have written the end of a run."""
    event = {"step": 7, "epoch": 1, "total_steps": 10, "total_epochs": 2, key: value}
    progress = Progress.at_end(event)
    progress_text(asdict(progress))
    json.dumps(asdict(progress), allow_nan=False)
    assert progress.step in (None, 0, 5, 7, TOP)


def test_what_the_journal_keeps_is_what_is_read_from_it() -> None:
    """The counts of an end come back, and what follows from them is worked out again."""
    ended = Progress.of(50, 1, 200, 4, 0.5)
    assert Progress.at_end(ended.facts_of_end()) == Progress.of(50, 1, 200, 4)


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(), ""),
        (Progress.of(5, 1), "step 5, 1 epoch done"),
        (Progress.of(5, 0), "step 5, 0 epochs done"),
        (Progress.of(5, None), "step 5"),
        (Progress.of(5, 1, 40, 4), "step 5 of 40, 1 of 4 epochs done, 12 %"),
        (Progress.of(5, 0, None, 1), "step 5, 0 of 1 epoch done, 0 %"),
        (Progress.of(5, 1, steps_per_second=0.03337), "step 5, 1 epoch done, 0.0334 steps/s"),
    ],
)
def test_text_leaves_out_what_is_unknown(progress: Progress, text: str) -> None:
    """Each known fact is one part of the line."""
    assert progress_text(asdict(progress)) == text


def test_text_ends_with_the_time_left_and_the_expected_end() -> None:
    """The end is a local time, with the date if it is on another day."""
    text = progress_text(asdict(Progress.of(0, 0, 100, None, 1.0)))
    assert ", 1 min 40 s left, until " in text
    week = datetime.now().astimezone() + timedelta(days=7)
    assert end_text(7 * 86400).startswith(f"{week:%Y-%m-%d} ")


def test_percent_is_rounded_down_for_people() -> None:
    """100 % is the end, and nothing before it."""
    assert percent_text(99.99) == "99 %"
    assert percent_text(100.0) == "100 %"
