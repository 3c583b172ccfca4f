"""How long this process has run, by clocks that nobody sets, and how long it was asleep."""

import time

# Two clocks are read one after the other, and this process may wait for a processor in between.
SHORTEST_SLEEP_SECONDS = 1.0


class Uptime:
    """The seconds since this was made.

    On systems without a clock that counts the sleep of the machine (CLOCK_BOOTTIME), sleep is not
    seen: it counts neither as time nor as sleep.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._asleep_at_begin = _asleep_seconds()

    def read(self) -> tuple[float, float]:
        """Return the seconds so far, and how many of them the machine was asleep."""
        asleep = _asleep_seconds() - self._asleep_at_begin
        if asleep < SHORTEST_SLEEP_SECONDS:
            asleep = 0.0
        return time.monotonic() - self._began + asleep, asleep


def _asleep_seconds() -> float:
    """Return how long the machine has been asleep since it was booted; 0 where that is unknown."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return 0.0 if clock is None else time.clock_gettime(clock) - time.monotonic()
