"""A heartbeat by which other threads can tell that a thread makes progress."""

import time
from collections.abc import Callable


class Heartbeat:
    """The time of a thread's last progress; one thread writes it, others read it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_beat: float | None = None

    def beat(self) -> None:
        """Record progress."""
        self._last_beat = self._clock()

    def pause(self) -> None:
        """Record that the thread has no work, so that silence means nothing."""
        self._last_beat = None

    @property
    def silent_seconds(self) -> float | None:
        """Seconds since the last progress; None while the thread has no work."""
        last = self._last_beat
        return None if last is None else self._clock() - last
