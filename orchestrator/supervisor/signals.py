"""Signals to the supervisor: recorded as they come, merged where one cause sends several."""

import asyncio
import signal
import time
from collections.abc import Callable

from orchestrator.stopsignals import STOP_SIGNALS, EchoFilter


class SignalReceiver:
    """Turns signals into calls on the event loop."""

    def __init__(
        self, on_stop: Callable[[signal.Signals], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._on_stop = on_stop
        self._echoes = EchoFilter(clock)

    def install(
        self,
        loop: asyncio.AbstractEventLoop,
        on_save: Callable[[], None],
        on_child: Callable[[], None],
        on_resize: Callable[[], None],
    ) -> None:
        """Take the signals over, but leave an ignored SIGHUP ignored: that is what nohup is."""
        for number in STOP_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            loop.add_signal_handler(number, self.receive_stop, number)
        loop.add_signal_handler(signal.SIGUSR2, on_save)
        loop.add_signal_handler(signal.SIGCHLD, on_child)
        loop.add_signal_handler(signal.SIGWINCH, on_resize)

    def receive_stop(self, number: signal.Signals) -> None:
        """Pass a request to stop on, unless it belongs to the one just before."""
        if not self._echoes.is_echo():
            self._on_stop(number)
