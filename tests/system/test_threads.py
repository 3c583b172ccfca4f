"""Blocking work beside the event loop, where the system grants no thread."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from orchestrator.errors import NoThreadError
from orchestrator.system import threads
from orchestrator.system.threads import in_thread


def refuse(times: float) -> Callable[[threading.Thread], None]:
    """``Thread.start`` on a system that is at its limit of processes for so many attempts."""
    start, refused = threading.Thread.start, []

    def start_or_not(thread: threading.Thread) -> None:
        if len(refused) < times:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    return start_or_not


def test_work_waits_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system refuses for a moment only comes later."""
    monkeypatch.setattr(threading.Thread, "start", refuse(times=2))
    assert asyncio.run(in_thread(lambda: "done")) == "done"


def test_work_without_a_thread_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system refuses for long is an error that says what to raise."""
    monkeypatch.setattr(threads, "THREAD_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(threading.Thread, "start", refuse(times=float("inf")))
    with pytest.raises(NoThreadError, match="ulimit -u"):
        asyncio.run(in_thread(lambda: "done"))
