"""The signals that request a stop, their grouping into requests, and an exit by SIGINT."""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

# One cause often sends two signals: for a closed terminal both the kernel and the shell send
# SIGHUP, and systemd adds SIGHUP to SIGTERM. Only a later signal is a second request.
MERGE_SECONDS = 0.3


def end_by_interrupt() -> NoReturn:
    """End this process by SIGINT, so that a shell loop around it ends too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    # SIGINT does not end the first process of a container. Shells use this status for it.
    sys.exit(128 + signal.SIGINT)


class EchoFilter:
    """Tells a new stop request from further signals of the last one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_request = float("-inf")

    def is_echo(self) -> bool:
        """Return whether a signal that arrives now belongs to the last request.

        An echo does not extend the time in which signals count as echoes, so that signals sent
        four times a second still count as repeated requests.
        """
        now = self._clock()
        if now - self._last_request < MERGE_SECONDS:
            return True
        self._last_request = now
        return False
