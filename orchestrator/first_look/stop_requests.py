"""Counts the requests to stop that come by signals."""

import signal
from types import FrameType

from orchestrator.system.stop_signals import STOP_SIGNALS, EchoFilter


class StopRequests:
    """Records the stop signals that this process receives; the first ends the look.

    While the script is being ended, the next one has it killed at once.
    """

    def __init__(self) -> None:
        self.count = 0
        self._ignored = 0
        self._echoes = EchoFilter()
        for number in STOP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._record)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if not self._echoes.is_echo():
            self.count += 1

    def forget_first(self) -> None:
        """Take what has come so far for the request to end the look."""
        self._ignored = self.count

    def is_hurried(self) -> bool:
        """Return whether a further request has come."""
        return self.count > self._ignored
