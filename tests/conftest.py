"""What holds for all tests."""

import gc
import os
import signal

import pytest

# The test processes share the cores: threads of torch that wait for each other would spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Under nohup, or in the background of a shell, signals are ignored: not by what we start."""
    for number, handler in (
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long test that begins last has the other processes wait for it."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """What we have imported stays: no collection is to go through it, or copy it in a fork."""
    gc.collect()
    gc.freeze()
