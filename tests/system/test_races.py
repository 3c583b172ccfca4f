"""Waiting for the first of several awaitables, and tasks beside a block."""

import asyncio

import pytest

from orchestrator.system.races import beside, first_of


class Task:
    """An awaitable that records how it ended."""

    def __init__(self) -> None:
        self.cancelled = False
        self.go = asyncio.Event()

    async def run(self) -> None:
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # an end that takes a moment
            self.cancelled = True
            raise

    async def fail(self) -> None:
        await self.go.wait()
        raise ValueError("it failed")


def test_first_of_cancels_the_others_and_waits_for_their_end() -> None:
    """After the race nothing of the slower awaitables runs any more."""

    async def race() -> tuple[bool, bool]:
        fast, slow = Task(), Task()
        fast.go.set()
        await first_of(fast.run(), slow.run())
        return fast.cancelled, slow.cancelled

    assert asyncio.run(race()) == (False, True)


def test_first_of_raises_what_the_first_raised() -> None:
    """A failure is not mistaken for an end."""

    async def race() -> None:
        failing, slow = Task(), Task()
        failing.go.set()
        await first_of(failing.fail(), slow.run())

    with pytest.raises(ValueError, match="it failed"):
        asyncio.run(race())


def test_first_of_stops_waiting_when_the_time_is_up() -> None:
    """At the timeout all awaitables are cancelled, and nothing is raised."""

    async def race() -> bool:
        slow = Task()
        await first_of(slow.run(), timeout_seconds=0.01)
        return slow.cancelled

    assert asyncio.run(race())


def test_first_of_leaves_a_shielded_awaitable_alone() -> None:
    """A shielded task continues after the race."""

    async def race() -> tuple[bool, bool]:
        fast, slow = Task(), Task()
        going_on = asyncio.ensure_future(slow.run())
        fast.go.set()
        await first_of(fast.run(), asyncio.shield(going_on))
        slow.go.set()
        await going_on
        return slow.cancelled, going_on.done()

    assert asyncio.run(race()) == (False, True)


def test_first_of_that_is_cancelled_cancels_all() -> None:
    """A cancelled race leaves no task behind."""

    async def race() -> list[bool]:
        tasks = [Task(), Task()]
        running = asyncio.ensure_future(first_of(*(task.run() for task in tasks)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait({running})
        return [task.cancelled for task in tasks]

    assert asyncio.run(race()) == [True, True]


def test_beside_ends_its_tasks_with_the_block() -> None:
    """The tasks run while the block runs, and have ended when it is left."""

    async def block() -> bool:
        task = Task()
        async with beside(task.run()):
            await asyncio.sleep(0)
            assert not task.cancelled
        return task.cancelled

    assert asyncio.run(block())


def test_a_task_that_fails_beside_a_block_does_not_end_the_block() -> None:
    """An observer's failure is reported and disturbs nothing else."""
    reported: list[str] = []

    async def block() -> bool:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context["message"]))
        task = Task()
        task.go.set()
        async with beside(task.fail()):
            for _ in range(5):
                await asyncio.sleep(0)
        return True

    assert asyncio.run(block())
    assert reported == ["a task beside the run has failed"]
