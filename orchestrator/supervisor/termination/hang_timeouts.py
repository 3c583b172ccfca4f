"""How long a trainer may show no sign of life before it is considered hung.

A false alarm ends a good run and is far worse than a late one. So every activity may be silent for
the longest silence seen in it, and a margin on top. The margin is half an hour where nothing was
seen yet (the first evaluation has no history), and for what is rare and depends on other systems,
such as a start or a save. For steps and evaluations it is nine times the longest silence, but at
least five minutes and at most half an hour. A script that saves for itself has no timeout until
three of its saves were seen: what it does between two of them, such as an evaluation, is known by
then. A step that was considered hung once gets ten times as long the next time: a good run that is
slow there is restarted once, and does not give up.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from orchestrator.supervisor.attempt.activity import Activity, Silence

LARGEST_MARGIN_SECONDS = 1800.0
LEAST_MARGIN_SECONDS = 300.0
MARGIN_FACTOR = 9.0
SECOND_CHANCE_FACTOR = 10.0
SAVES_TO_LEARN = 3

TICK_SECONDS = 1.0
# At most this much of the time between two ticks counts. A supervisor that was stopped, suspended
# or did not get the processor for longer has not seen the trainer silent.
LONGEST_TICK_SECONDS = 2 * TICK_SECONDS


@dataclass(frozen=True)
class Sign:
    """A sign of life is any change of this.

    ``count`` is the number of safe points; for a script that saves for itself it grows with
    whatever shows its life.
    """

    activity: Activity
    count: int
    step: int


class HangTimeouts:
    """The timeouts, learned over all attempts of a supervisor."""

    def __init__(self, setting: float | Literal["auto", "off"]) -> None:
        """Begin with nothing learned; ``setting`` is --hang-timeout.

        A number holds for every activity from the first step.
        """
        self._setting = setting
        self._longest: dict[Activity, float] = {}
        self._hung_at: set[tuple[Activity, int]] = set()
        self._saves = 0

    @property
    def are_fixed(self) -> bool:
        """Whether the timeout was given as a number."""
        return self._setting not in ("auto", "off")

    def record_save(self) -> None:
        """Record that a script which saves for itself has worked its way to a save."""
        self._saves += 1

    def record_silence(self, activity: Activity, seconds: float) -> None:
        """Record a silence that came to an end by itself."""
        self._longest[activity] = max(self._longest.get(activity, 0.0), seconds)
        if activity is Activity.START:
            # What was compiled for the first step may be compiled for another.
            self.record_silence(Activity.STEP, seconds)

    def record_hang(self, activity: Activity, step: int) -> None:
        """Record that the trainer was considered hung there."""
        self._hung_at.add((activity, step))

    def seconds(self, activity: Activity, step: int) -> float | None:
        """Return how long the trainer may be silent; None for any time."""
        if self._setting == "off" or activity is Activity.DONE:
            return None
        if activity is Activity.LAUNCH and activity not in self._longest:
            # The command may prepare its data for hours, or have no session at all.
            return None
        if activity is Activity.SCRIPT and not self.are_fixed and self._saves < SAVES_TO_LEARN:
            return None
        learned = self._longest.get(activity, 0.0) + self._margin(activity)
        if (activity, step) in self._hung_at:
            learned *= SECOND_CHANCE_FACTOR
        if self._setting == "auto" or activity is Activity.LAUNCH:
            return learned
        if activity is not Activity.START:
            return self._setting
        # Restoring and compiling do not take the time of a step, but that of the last start: a
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
        self, timeouts: HangTimeouts, sign: Sign, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeouts = timeouts
        self._clock = clock
        self._sign = sign
        self._silent_seconds = 0.0
        self._last_tick = clock()

    def tick(self, sign: Sign, excused: bool = False) -> Silence:
        """Compare the sign of life with the last one, and return the silence so far.

        Call it about every TICK_SECONDS. ``excused``: the trainer waits for what is not its own
        work.
        """
        now = self._clock()
        if not excused:
            self._silent_seconds += min(now - self._last_tick, LONGEST_TICK_SECONDS)
        self._last_tick = now
        if sign != self._sign:
            self._timeouts.record_silence(self._sign.activity, self._silent_seconds)
            self._sign, self._silent_seconds = sign, 0.0
        return Silence(
            sign.activity,
            sign.step,
            self._silent_seconds,
            self._timeouts.seconds(sign.activity, sign.step),
        )
