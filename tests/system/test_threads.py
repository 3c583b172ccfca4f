"""Blocking calls in threads on a system that refuses to start threads."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from orchestrator.errors import NoThreadError
from orchestrator.system import threads
from orchestrator.system.threads import in_thread


def refuse(times: float) -> Callable[[threading.Thread], None]:
    """Return a ``Thread.start`` that fails the first ``times`` calls, as at a process limit."""
    start, refused = threading.Thread.start, []

    def start_or_not(thread: threading.Thread) -> None:
        if len(refused) < times:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    return start_or_not


def test_work_waits_until_a_thread_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work runs late when the system refuses threads for a moment."""
    monkeypatch.setattr(threading.Thread, "start", refuse(times=2))
    assert asyncio.run(in_thread(lambda: "done")) == "done"


def test_work_without_a_thread_fails_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lasting refusal raises an error that names the limit to raise."""
    monkeypatch.setattr(threads, "THREAD_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(threading.Thread, "start", refuse(times=float("inf")))
    with pytest.raises(NoThreadError, match="ulimit -u"):
        asyncio.run(in_thread(lambda: "done"))
