"""Runs blocking calls in daemon threads, off the event loop."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from orchestrator.errors import NoThreadError

T = TypeVar("T")

# A machine at its process limit often has room again a moment later.
THREAD_WAIT_SECONDS = 60.0
THREAD_POLL_SECONDS = 0.2


async def in_thread(work: Callable[[], T]) -> T:
    """Run ``work`` in a daemon thread and await its result.

    It does not use asyncio.to_thread, because the program would not exit while one thread of that
    executor is stuck on a dead disk or on a process in uninterruptible sleep.
    Raises NoThreadError when the system refuses to start a thread for a minute.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def deliver(set_outcome: Callable[[Any], None], outcome: Any) -> None:
        if not result.done():
            set_outcome(outcome)

    def run() -> None:
        try:
            outcome: tuple[Callable[[Any], None], Any] = (result.set_result, work())
        except BaseException as error:
            outcome = (result.set_exception, error)
        # If the loop has closed in the meantime, no code waits for the result.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(deliver, *outcome)

    await _start(threading.Thread(target=run, daemon=True))
    return await result


async def _start(thread: threading.Thread) -> None:
    deadline = time.monotonic() + THREAD_WAIT_SECONDS
    while True:
        try:
            thread.start()
            return
        except RuntimeError:
            if time.monotonic() >= deadline:
                raise NoThreadError from None
        await asyncio.sleep(THREAD_POLL_SECONDS)


def ignore_outcome(future: "asyncio.Future[Any]") -> None:
    """Silence asyncio's warning about an exception that was never retrieved."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
