"""Settings of all tests."""

import gc
import os
import signal

import hypothesis
import pytest

from tests.e2e.hosts.need import skip_or_fail

# The pace of the machine is nothing that a test may fail by.
hypothesis.settings.register_profile("without deadlines", deadline=None)
hypothesis.settings.load_profile("without deadlines")

# The test processes share the cores: threads of torch that wait for each other would spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def as_root() -> None:
    """Skip a test that acts as several users where this process may not; fail it in CI."""
    if os.getuid() != 0:
        skip_or_fail("only root can become other users, or give files to them")


def pytest_configure() -> None:
    """Restore signals that nohup or a shell's background ignores: started processes need them."""
    for number, handler in (
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: a long test at the end has the other processes wait for it.

    Each process begins with one block of the tests. A block has a share of the long ones, then of
    those that start processes, then of the others, which other processes take over one by one.

    A hang in a test of hypothesis ends the process: an exception there would be taken for an
    example that fails, and the hang tried again, without a timeout.
    """
    for item in items:
        if getattr(getattr(item, "function", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.timeout(method="thread"))
    long, starting, quick = [], [], []
    for item in items:
        if item.get_closest_marker("long"):
            long.append(item)
        else:
            (starting if item.get_closest_marker("processes") else quick).append(item)
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items.clear()
    for number in range(processes):
        items += long[number::processes]
        for group in (starting, quick):
            begin, end = (len(group) * n // processes for n in (number, number + 1))
            items += group[begin:end]


def pytest_collection_finish() -> None:
    """Freeze the imported objects, so that no collection visits them or copies them in a fork."""
    gc.collect()
    gc.freeze()
