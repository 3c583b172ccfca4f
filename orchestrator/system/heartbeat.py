"""Whether a thread gets on with its work, as others can see it."""

import time
from collections.abc import Callable


class Heartbeat:
    """Beats while there is work; one thread writes it, others read it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_beat: float | None = None

    def beat(self) -> None:
        """There is work, and it gets on."""
        self._last_beat = self._clock()

    def rest(self) -> None:
        """There is no work."""
        self._last_beat = None

    @property
    def silent_seconds(self) -> float | None:
        """How long ago it last got on; None while there is no work."""
        last = self._last_beat
        return None if last is None else self._clock() - last
