"""Waits for the first of several awaitables, and runs tasks beside a block of code."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Coroutine
from typing import Any


async def first_of(*awaitables: Awaitable[Any], timeout_seconds: float | None = None) -> None:
    """Wait until one of ``awaitables`` is done, or the time is up; then cancel the others.

    Returns when the cancelled ones have ended too. Raises what the first one raised; what the
    cancelled ones raise is dropped. Shield an awaitable that must not be cancelled.
    """
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(
            tasks, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


@contextlib.asynccontextmanager
async def beside(*works: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Run ``works`` as tasks while the block runs, and cancel them at its end.

    asyncio.TaskGroup would cancel the block when one of them fails. What only observes a training
    must not end it: a failure is reported to the loop's exception handler, and the block goes on.
    """
    tasks = {asyncio.ensure_future(work) for work in works}
    for task in tasks:
        task.add_done_callback(_report_failure)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _report_failure(task: "asyncio.Future[object]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        facts = {"message": "a task beside the run has failed", "exception": error, "task": task}
        task.get_loop().call_exception_handler(facts)
