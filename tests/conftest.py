"""What holds for all tests."""

import signal


def pytest_configure() -> None:
    """Under nohup, or in the background of a shell, signals are ignored: not by what we start."""
    for number, handler in (
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)
