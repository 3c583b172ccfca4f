"""The facts about a stop, and waits that it interrupts."""

import asyncio

import pytest

from orchestrator.supervisor.stop_request import StopRequest, StopWantedError


def test_third_request_wants_a_kill() -> None:
    """The first request names the source; the third one waits for nothing."""
    stop = StopRequest(30.0)
    for source in ("SIGTERM", "SIGINT"):
        stop.record(source)
    assert stop.wanted.is_set()
    assert not stop.kill_wanted.is_set()
    stop.record("SIGINT")
    assert stop.kill_wanted.is_set()
    assert stop.source == "SIGTERM"


@pytest.mark.parametrize(
    ("grace", "write", "patience"),
    [(30.0, 0.0, 28.0), (5.0, 0.0, 4.0), (30.0, 10.0, 18.0), (30.0, 100.0, 9.0)],
)
def test_patience_leaves_time_for_the_end_and_for_a_write(
    grace: float, write: float, patience: float
) -> None:
    """The safe point gets the rest of the grace period, and at least three tenths of it."""
    assert StopRequest(grace).patience_seconds(write) == pytest.approx(patience)


def test_wait_returns_its_result_without_a_stop() -> None:
    """Work that ends first is not disturbed."""

    async def wait() -> str:
        return await StopRequest(30.0).or_stop(asyncio.sleep(0, "done"))

    assert asyncio.run(wait()) == "done"


def test_stop_interrupts_a_wait() -> None:
    """The work is cancelled, and what waits for it is told of the stop."""

    async def wait() -> None:
        stop = StopRequest(30.0)
        asyncio.get_running_loop().call_soon(stop.record, "SIGTERM")
        await stop.or_stop(asyncio.Event().wait())

    with pytest.raises(StopWantedError):
        asyncio.run(wait())


def test_failure_of_the_work_is_raised() -> None:
    """An error is not mistaken for a stop, even when both come together."""

    async def fail() -> None:
        raise ValueError("it failed")

    async def wait() -> None:
        stop = StopRequest(30.0)
        stop.record("SIGTERM")
        await stop.or_stop(fail())

    with pytest.raises(ValueError, match="it failed"):
        asyncio.run(wait())
