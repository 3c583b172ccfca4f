"""Turns signals to the supervisor into calls on its event loop."""

import asyncio
import signal
from collections.abc import Callable

from orchestrator.system.stop_signals import STOP_SIGNALS


def take_over(
    loop: asyncio.AbstractEventLoop,
    on_stop: Callable[[str], None],
    on_save: Callable[[], None],
    on_child: Callable[[], None],
    on_resize: Callable[[], None],
) -> None:
    """Install the handlers; ``on_stop`` gets the signal's name.

    A SIGHUP that is ignored stays ignored: that is how nohup works.
    """
    for number in STOP_SIGNALS:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue
        loop.add_signal_handler(number, on_stop, number.name)
    loop.add_signal_handler(signal.SIGUSR2, on_save)
    loop.add_signal_handler(signal.SIGCHLD, on_child)
    loop.add_signal_handler(signal.SIGWINCH, on_resize)
