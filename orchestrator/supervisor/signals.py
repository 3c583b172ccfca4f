"""The signals to the supervisor: taken over by the event loop, which only records them."""

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
    """Turn signals into calls on the loop; ``on_stop`` gets the signal's name.

    An ignored SIGHUP stays ignored: that is what nohup is.
    """
    for number in STOP_SIGNALS:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue
        loop.add_signal_handler(number, on_stop, number.name)
    loop.add_signal_handler(signal.SIGUSR2, on_save)
    loop.add_signal_handler(signal.SIGCHLD, on_child)
    loop.add_signal_handler(signal.SIGWINCH, on_resize)
