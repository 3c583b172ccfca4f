"""The reports of the supervisor to the service manager."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.hosts.systemd.notify_socket import Notifier
from orchestrator.hosts.systemd.sd_notify import (
    EXTENSION_SECONDS,
    PROGRESS_SECONDS,
    STUCK_SECONDS,
    ServiceNotifications,
    status_text,
)
from orchestrator.system.heartbeat import Heartbeat
from orchestrator.telemetry.status import Status

EXTENSION = f"EXTEND_TIMEOUT_USEC={EXTENSION_SECONDS * 1_000_000}"


class WatchdogSetup:
    """A watchdog with a manager that receives, and a clock that the test moves."""

    def __init__(self, manager: socket.socket, watchdog_seconds: float | None = 0.01) -> None:
        self.manager = manager
        self.now = 0.0
        self.stopping = False
        self.writing, self.copying = Heartbeat(lambda: self.now), Heartbeat(lambda: self.now)
        self.watchdog = ServiceNotifications(
            Notifier(manager.getsockname(), watchdog_seconds),
            lambda: Status(run_id="", state="training", run_dir=""),
            lambda: self.stopping,
            self.writing,
            lambda: [self.writing, self.copying],
        )

    def report(self) -> list[str]:
        """Return everything that the watchdog sends in one round, and has sent before."""

        async def one_round() -> None:
            reporting = asyncio.ensure_future(self.watchdog.run())
            await asyncio.sleep(0)
            reporting.cancel()

        asyncio.run(one_round())
        return self.received()

    def received(self) -> list[str]:
        words: list[str] = []
        while True:
            try:
                words += self.manager.recv(4096).decode().splitlines()
            except BlockingIOError:
                return [word for word in words if not word.startswith("STATUS=")]


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[WatchdogSetup]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield WatchdogSetup(listening)


def test_ready_and_stopping_are_sent_once(setup: WatchdogSetup) -> None:
    """READY and STOPPING are each sent once, in their own messages."""
    assert setup.report() == ["WATCHDOG=1"]
    setup.watchdog.notify_ready()
    setup.watchdog.notify_ready()
    assert setup.received() == ["READY=1"]
    setup.stopping = True
    assert setup.report() == ["STOPPING=1", "WATCHDOG=1"]
    assert setup.report() == ["WATCHDOG=1"]
    setup.watchdog.notify_stopping()
    assert setup.received() == []


def test_run_that_ends_before_its_first_attempt_reports_ready(setup: WatchdogSetup) -> None:
    """READY is sent before STOPPING even without an attempt."""
    setup.watchdog.notify_stopping()
    assert setup.received() == ["READY=1", "STOPPING=1"]


def test_assignment_that_was_not_received_is_repeated(tmp_path: Path, setup: WatchdogSetup) -> None:
    """READY is sent again if the manager's queue was full."""
    filler = Notifier(setup.manager.getsockname())
    while filler.send("x"):
        pass
    setup.watchdog.notify_ready()
    setup.received()
    assert "READY=1" in setup.report()


def test_stop_timeout_is_extended_only_while_a_save_makes_progress(setup: WatchdogSetup) -> None:
    """The extension is requested only during a stop, while a write makes progress."""
    setup.writing.beat()
    assert EXTENSION not in setup.report()
    setup.stopping = True
    assert EXTENSION in setup.report()
    setup.now += PROGRESS_SECONDS
    assert EXTENSION not in setup.report()
    setup.writing.beat()
    assert EXTENSION in setup.report()
    setup.writing.pause()
    assert EXTENSION not in setup.report()


@pytest.mark.parametrize("thread", [lambda setup: setup.writing, lambda setup: setup.copying])
def test_stuck_thread_stops_the_pings(
    setup: WatchdogSetup, thread: Callable[[WatchdogSetup], Heartbeat]
) -> None:
    """A thread with work but without progress stops the pings; an idle one does not."""
    thread(setup).beat()
    setup.now += STUCK_SECONDS
    assert "WATCHDOG=1" not in setup.report()
    thread(setup).pause()
    assert "WATCHDOG=1" in setup.report()


def test_status_text_is_one_line() -> None:
    """The line has the state, the step, the loss and the age of the newest checkpoint."""
    status = Status(run_id="", state="training", run_dir="", attempt=2, step=1200, epoch=3)
    assert status_text(status) == "training, attempt 2; step 1200, epoch 3; no checkpoint yet"
    checkpoint: dict[str, Any] = {"path": "/x", "step": 1000, "age_seconds": 75.2}
    status.newest_checkpoint = checkpoint
    status.metrics = {"loss": 0.123456789, "accuracy": 0.5}
    assert status_text(status).endswith("; loss 0.123457; checkpoint of step 1000, 1 min 15 s old")
    status.metrics, status.problem = {"loss": "nan"}, "cannot save\nthe disk is full"
    assert status_text(status).endswith(
        "; loss nan; checkpoint of step 1000, 1 min 15 s old; cannot save the disk is full"
    )
