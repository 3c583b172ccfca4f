"""When a silence is a hang: the timeouts, and the clock that measures silences."""

from typing import Literal

import pytest

from orchestrator.supervisor.attempt.activity import Activity, Silence
from orchestrator.supervisor.termination.hang_timeouts import (
    LARGEST_MARGIN_SECONDS,
    LEAST_MARGIN_SECONDS,
    LONGEST_TICK_SECONDS,
    SECOND_CHANCE_FACTOR,
    TICK_SECONDS,
    HangClock,
    HangTimeouts,
    Sign,
)

MINUTE = 60.0
HALF_AN_HOUR = LARGEST_MARGIN_SECONDS


@pytest.mark.parametrize(
    ("setting", "activity", "seen", "timeout"),
    [
        ("auto", Activity.LAUNCH, [], None),
        ("auto", Activity.LAUNCH, [MINUTE], MINUTE + HALF_AN_HOUR),
        ("auto", Activity.START, [], HALF_AN_HOUR),
        ("auto", Activity.START, [2.0], 2.0 + HALF_AN_HOUR),
        ("auto", Activity.STEP, [], HALF_AN_HOUR),
        ("auto", Activity.STEP, [0.1], 0.1 + LEAST_MARGIN_SECONDS),
        ("auto", Activity.STEP, [0.1, MINUTE, 0.1], 10 * MINUTE),
        ("auto", Activity.STEP, [600 * MINUTE], 630 * MINUTE),
        ("auto", Activity.EVALUATE, [], HALF_AN_HOUR),
        ("auto", Activity.EVALUATE, [2 * MINUTE], 20 * MINUTE),
        ("auto", Activity.SAVE, [1.0], 1.0 + HALF_AN_HOUR),
        ("auto", Activity.END, [], HALF_AN_HOUR),
        ("auto", Activity.DONE, [], None),
        ("off", Activity.STEP, [1.0], None),
        (90.0, Activity.LAUNCH, [], None),
        (90.0, Activity.LAUNCH, [MINUTE], MINUTE + HALF_AN_HOUR),
        (90.0, Activity.START, [], HALF_AN_HOUR),
        (7200.0, Activity.START, [], 7200.0),
        (90.0, Activity.START, [5.0], 90.0),
        (90.0, Activity.START, [MINUTE, 5.0], 10 * MINUTE),
        (90.0, Activity.STEP, [600.0], 90.0),
        (90.0, Activity.EVALUATE, [], 90.0),
        (90.0, Activity.SAVE, [], 90.0),
        (90.0, Activity.DONE, [], None),
    ],
)
def test_timeout_of_each_activity(
    setting: float | Literal["auto", "off"],
    activity: Activity,
    seen: list[float],
    timeout: float | None,
) -> None:
    """Recorded silences decide, within documented limits; a number holds from the first step."""
    timeouts = HangTimeouts(setting)
    for seconds in seen:
        timeouts.record_silence(activity, seconds)
    assert timeouts.seconds(activity, step=5) == timeout


def test_compilation_at_the_start_raises_the_timeout_of_a_step() -> None:
    """The time to the first safe point counts for later steps too."""
    timeouts = HangTimeouts("auto")
    timeouts.record_silence(Activity.START, 2 * MINUTE)
    timeouts.record_silence(Activity.STEP, 0.1)
    assert timeouts.seconds(Activity.STEP, step=5) == 20 * MINUTE


def test_step_that_looked_hung_gets_longer_the_next_time() -> None:
    """That step gets a second chance, others the usual timeout; a number set by hand stays."""
    timeouts, fixed = HangTimeouts("auto"), HangTimeouts(90.0)
    for each in (timeouts, fixed):
        each.record_silence(Activity.STEP, 0.1)
        each.record_hang(Activity.STEP, step=7)
    usual = timeouts.seconds(Activity.STEP, step=8)
    assert usual == 0.1 + LEAST_MARGIN_SECONDS
    assert timeouts.seconds(Activity.STEP, step=7) == SECOND_CHANCE_FACTOR * usual
    assert fixed.seconds(Activity.STEP, step=7) == 90.0


class Trainer:
    """A trainer and its supervisor's clock, both moved by hand."""

    def __init__(self, timeouts: HangTimeouts) -> None:
        self.now = 1000.0
        self.sign = Sign(Activity.STEP, count=1, step=1)
        self._clock = HangClock(timeouts, self.sign, lambda: self.now)

    def steps(self) -> None:
        self.sign = Sign(self.sign.activity, self.sign.count + 1, self.sign.step + 1)

    def ticks(self, seconds: float, excused: bool = False) -> Silence:
        """Let time pass while the supervisor ticks as it should; return the last silence."""
        for _ in range(int(seconds / TICK_SECONDS)):
            self.now += TICK_SECONDS
            silence = self._clock.tick(self.sign, excused)
        return silence

    def tick_after(self, seconds: float) -> Silence:
        """Tick once, after this time."""
        self.now += seconds
        return self._clock.tick(self.sign)


def test_silence_is_a_hang_when_it_is_longer_than_the_timeout() -> None:
    """A silence as long as the timeout is no hang, and a sign of life ends it."""
    trainer = Trainer(HangTimeouts(90.0))
    assert not trainer.ticks(90).is_hang
    assert trainer.ticks(1).is_hang
    trainer.steps()
    assert trainer.ticks(1).seconds == 0


def test_silence_that_ended_by_itself_raises_the_timeout() -> None:
    """Later silences of its length are normal."""
    timeouts = HangTimeouts("auto")
    trainer = Trainer(timeouts)
    trainer.ticks(100)
    trainer.steps()
    trainer.ticks(1)
    assert timeouts.seconds(Activity.STEP, step=2) == pytest.approx(1010)


def test_change_of_activity_is_a_sign_of_life() -> None:
    """An evaluation begins its own silence and is measured against its own timeout."""
    trainer = Trainer(HangTimeouts(90.0))
    trainer.ticks(80)
    trainer.sign = Sign(Activity.EVALUATE, trainer.sign.count, trainer.sign.step)
    silence = trainer.ticks(80)
    assert silence.seconds < 80
    assert not silence.is_hang


def test_time_in_which_the_supervisor_did_not_run_does_not_count() -> None:
    """A supervisor that was stopped or suspended for a day has not seen a day of silence."""
    trainer = Trainer(HangTimeouts(90.0))
    assert trainer.tick_after(86400).seconds == LONGEST_TICK_SECONDS
    assert not trainer.ticks(80).is_hang


def test_excused_time_does_not_count() -> None:
    """A trainer that waits for the supervisor's own write does not hang."""
    trainer = Trainer(HangTimeouts(90.0))
    assert trainer.ticks(1000, excused=True).seconds == 0
