"""Signals that end chaos itself: the handler records them, and chaos raises them as it waits."""

import signal
from types import FrameType

from orchestrator.system.stop_signals import end_by_interrupt

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class InterruptedBySignalError(Exception):
    """A signal asks chaos to end, which ends its runs first."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self._number = number

    def end(self) -> int:
        """End the process by SIGINT after a Ctrl-C; else return the exit status shells use."""
        if self._number is signal.SIGINT:
            end_by_interrupt()
        return 128 + self._number


class Interrupts:
    """Records the stop signals that this process receives."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        for number in STOP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._record)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)

    def check(self) -> None:
        """Raise InterruptedBySignalError if a signal has come."""
        if self.received is not None:
            raise InterruptedBySignalError(self.received)
