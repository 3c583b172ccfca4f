"""When a trainer that shows no sign of life is taken for hung: budgets learned from what was seen.

A false alarm ends a good run and is far worse than a late one. So every activity gets the longest
silence seen in it, and a margin on top: half an hour where nothing was seen yet (the first
evaluation has no history) and for what is rare and depends on others, as a start or a save; for
steps and evaluations nine times the longest, but at least five minutes and at most half an hour.
What looked hung once gets ten times as long when it comes to the same step again: a good run that
is slow there is then restarted once and not given up.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from orchestrator.ipc.control_page import Field, Phase
from orchestrator.supervisor.attempt.attempt import Attempt

LARGEST_MARGIN_SECONDS = 1800.0
LEAST_MARGIN_SECONDS = 300.0
MARGIN_FACTOR = 9.0
SECOND_CHANCE_FACTOR = 10.0

TICK_SECONDS = 1.0
# Of the time between two ticks, this much counts. A supervisor that was stopped, suspended or did
# not get the processor for longer has not seen the trainer silent.
LONGEST_TICK_SECONDS = 2 * TICK_SECONDS


class Activity(StrEnum):
    """What the trainer is busy with, as far as its signs of life tell."""

    LAUNCH = "launch"
    """The command runs, the session is not open: a command without one never leaves this."""
    START = "start"
    """From the session's opening to the first safe point: restoring, compiling, a first step."""
    STEP = "step"
    EVALUATE = "evaluate"
    """From the end of an epoch's batches, or a poll(), to the next step."""
    SAVE = "save"
    END = "end"
    """The session was left by an exception; the process has yet to end."""
    DONE = "done"
    """Training is complete or stopped; what the script does then is its own affair."""


_ACTIVITIES = {
    Phase.START: Activity.START,
    Phase.RESTORE: Activity.START,
    Phase.TRAIN: Activity.STEP,
    Phase.EVALUATE: Activity.EVALUATE,
    Phase.SAVE: Activity.SAVE,
    Phase.DONE: Activity.DONE,
}


@dataclass(frozen=True)
class Sign:
    """Life shows in any change of this."""

    activity: Activity
    safe_points: int
    step: int


def sign_of(attempt: Attempt) -> Sign:
    """What it shows now."""
    page = attempt.page
    safe_points, step = page.values[Field.SAFE_POINTS], page.values[Field.STEP]
    activity = _ACTIVITIES[page.phase]
    if not attempt.connected:
        activity = Activity.LAUNCH
    elif attempt.peer is None and activity is not Activity.DONE:
        activity = Activity.END
    elif activity is Activity.STEP and not safe_points:
        activity = Activity.START
    return Sign(activity, safe_points, step)


@dataclass(frozen=True)
class Silence:
    """How long there was no sign of life, and how long there may be none (None: any time)."""

    activity: Activity
    step: int
    seconds: float
    budget_seconds: float | None

    @property
    def is_hang(self) -> bool:
        """Whether it has lasted too long."""
        return self.budget_seconds is not None and self.seconds > self.budget_seconds


class HangTimeouts:
    """What was learned over all attempts of a supervisor's life."""

    def __init__(self, setting: float | Literal["auto", "off"]) -> None:
        """``setting`` is --hang-timeout; a number holds for every activity from the first step."""
        self._setting = setting
        self._longest: dict[Activity, float] = {}
        self._ended_as_hung: set[tuple[Activity, int]] = set()

    def seen(self, activity: Activity, seconds: float) -> None:
        """A silence of this length came to an end by itself."""
        self._longest[activity] = max(self._longest.get(activity, 0.0), seconds)
        if activity is Activity.START:
            # What was compiled for the first step may be compiled for another.
            self.seen(Activity.STEP, seconds)

    def ended_as_hung(self, activity: Activity, step: int) -> None:
        """The trainer was ended there."""
        self._ended_as_hung.add((activity, step))

    def seconds(self, activity: Activity, step: int) -> float | None:
        """How long the trainer may be silent; None for any time."""
        if self._setting == "off" or activity is Activity.DONE:
            return None
        if activity is Activity.LAUNCH and activity not in self._longest:
            # The command may prepare its data for hours, or have no session at all.
            return None
        learned = self._longest.get(activity, 0.0) + self._margin(activity)
        if (activity, step) in self._ended_as_hung:
            learned *= SECOND_CHANCE_FACTOR
        if self._setting == "auto" or activity is Activity.LAUNCH:
            return learned
        if activity is not Activity.START:
            return self._setting
        # Restoring and compiling are no matter of the usual pace, but of that of the last start: a
        # trainer that hangs at one step resumes there, and hangs before its first safe point.
        longest = self._longest.get(activity)
        start = learned if longest is None else (1 + MARGIN_FACTOR) * longest
        return max(self._setting, start)

    def _margin(self, activity: Activity) -> float:
        if activity not in (Activity.STEP, Activity.EVALUATE) or activity not in self._longest:
            return LARGEST_MARGIN_SECONDS
        margin = max(LEAST_MARGIN_SECONDS, MARGIN_FACTOR * self._longest[activity])
        return min(margin, LARGEST_MARGIN_SECONDS)


class HangClock:
    """Measures the silences of one attempt, in time during which the supervisor itself ran."""

    def __init__(
        self, budgets: HangTimeouts, sign: Sign, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._budgets = budgets
        self._clock = clock
        self._sign = sign
        self._silent_seconds = 0.0
        self._ticked = clock()

    def tick(self, sign: Sign, excused: bool = False) -> Silence:
        """Look at the sign of life, about every TICK_SECONDS; the silence so far.

        ``excused``: what the trainer waits for now is not its own work.
        """
        now = self._clock()
        if not excused:
            self._silent_seconds += min(now - self._ticked, LONGEST_TICK_SECONDS)
        self._ticked = now
        if sign != self._sign:
            self._budgets.seen(self._sign.activity, self._silent_seconds)
            self._sign, self._silent_seconds = sign, 0.0
        return Silence(
            sign.activity,
            sign.step,
            self._silent_seconds,
            self._budgets.seconds(sign.activity, sign.step),
        )
