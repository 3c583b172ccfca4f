"""Lets the training run while a thread computes beside it."""

import time
from collections.abc import Callable

# A loop of torch operations gives up the interpreter lock in each of them, and a thread that
# computes keeps it for as long as the interpreter allows, 5 ms. Without rests each operation of the
# loop would take that long.
WORK_SECONDS = 0.0005
# As short as a sleep can be: it only hands the lock over.
REST_SECONDS = 0.0001


class Breather:
    """Rests between short pieces of work.

    Attributes:
        is_hurried: Whether the training waits for the work, so that rests would only delay it.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.is_hurried = False
        self._clock = clock
        self._sleep = sleep
        self._rest_at = 0.0

    def breathe(self) -> None:
        """Rest if it is time for that; call this after each small piece of work."""
        if self._clock() >= self._rest_at and not self.is_hurried:
            self._sleep(REST_SECONDS)
            self._rest_at = self._clock() + WORK_SECONDS


def never() -> None:
    """Do not rest: nothing runs beside this work."""
