"""Which signals ask for a stop, which of them belong to one request, and how to die of one."""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

# One cause often sends twice: a closing terminal hangs up through the kernel and through the
# shell, systemd adds SIGHUP to SIGTERM. Only a later signal is a person who insists.
MERGE_SECONDS = 0.3


def end_by_interrupt() -> NoReturn:
    """End the process by SIGINT: a shell loop around it ends too only then."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    # The first process of a container cannot die of it; this is how shells put it in a status.
    sys.exit(128 + signal.SIGINT)


class EchoFilter:
    """Tells a request from the echoes of the one before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_request = float("-inf")

    def is_echo(self) -> bool:
        """Whether a signal that comes now belongs to the last request.

        An echo does not prolong the time in which others count as such: who sends every quarter
        of a second insists too.
        """
        now = self._clock()
        if now - self._last_request < MERGE_SECONDS:
            return True
        self._last_request = now
        return False
