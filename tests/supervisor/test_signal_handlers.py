"""Signals to the supervisor."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import pytest

from orchestrator.supervisor.signal_handlers import take_over
from tests.support import DEADLINE_SECONDS


def installed(scenario: Callable[[list[str]], Awaitable[None]]) -> list[str]:
    """Return the calls that were made while ``scenario`` ran with the handlers installed."""
    calls: list[str] = []

    async def run() -> None:
        take_over(
            asyncio.get_running_loop(),
            on_stop=calls.append,
            on_save=lambda: calls.append("save"),
            on_child=lambda: calls.append("child"),
            on_resize=lambda: calls.append("resize"),
        )
        await asyncio.wait_for(scenario(calls), DEADLINE_SECONDS)

    asyncio.run(run())
    return calls


@pytest.mark.parametrize(
    ("number", "call"),
    [
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGINT, "SIGINT"),
        (signal.SIGHUP, "SIGHUP"),
        (signal.SIGUSR1, "SIGUSR1"),
        (signal.SIGUSR2, "save"),
        (signal.SIGCHLD, "child"),
        (signal.SIGWINCH, "resize"),
    ],
)
def test_each_signal_has_its_effect(number: signal.Signals, call: str) -> None:
    """A signal to the process becomes one call on the event loop."""

    async def scenario(calls: list[str]) -> None:
        os.kill(os.getpid(), number)
        while not calls:
            await asyncio.sleep(0)

    assert installed(scenario) == [call]


def test_ignored_hangup_stays_ignored() -> None:
    """Under nohup the run goes on when the terminal closes; other signals still count."""

    async def scenario(calls: list[str]) -> None:
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        while not calls:
            await asyncio.sleep(0)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert installed(scenario) == ["SIGTERM"]
    finally:
        signal.signal(signal.SIGHUP, before)
