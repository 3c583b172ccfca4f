"""What the supervisor says of itself as a service."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.hosts.systemd.notify import Notifier
from orchestrator.hosts.systemd.watchdog import (
    EXTENSION_SECONDS,
    PROGRESS_SECONDS,
    STUCK_SECONDS,
    ServiceWatchdog,
    status_text,
)
from orchestrator.system.heartbeat import Heartbeat
from orchestrator.telemetry.status import Status

EXTENSION = f"EXTEND_TIMEOUT_USEC={EXTENSION_SECONDS * 1_000_000}"


class Bench:
    """A service with a manager that listens, and a clock that the test moves."""

    def __init__(self, listening: socket.socket, watchdog_seconds: float | None = 0.01) -> None:
        self.listening = listening
        self.now = 0.0
        self.stopping = False
        self.writing, self.copying = Heartbeat(lambda: self.now), Heartbeat(lambda: self.now)
        self.service = ServiceWatchdog(
            Notifier(listening.getsockname(), watchdog_seconds),
            lambda: Status(run_id="", state="training", run_dir=""),
            lambda: self.stopping,
            self.writing,
            lambda: [self.writing, self.copying],
        )

    def told(self) -> list[str]:
        """Everything that is said in one round, and was before."""

        async def one_round() -> None:
            telling = asyncio.ensure_future(self.service.tell())
            await asyncio.sleep(0)
            telling.cancel()

        asyncio.run(one_round())
        return self.heard()

    def heard(self) -> list[str]:
        words: list[str] = []
        while True:
            try:
                words += self.listening.recv(4096).decode().splitlines()
            except BlockingIOError:
                return [word for word in words if not word.startswith("STATUS=")]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield Bench(listening)


def test_ready_and_stopping_are_said_once(bench: Bench) -> None:
    """READY when training is under way, STOPPING when a stop is wanted, each in its own message."""
    assert bench.told() == ["WATCHDOG=1"]
    bench.service.started()
    bench.service.started()
    assert bench.heard() == ["READY=1"]
    bench.stopping = True
    assert bench.told() == ["STOPPING=1", "WATCHDOG=1"]
    assert bench.told() == ["WATCHDOG=1"]
    bench.service.ended()
    assert bench.heard() == []


def test_a_run_that_ends_before_its_first_attempt_was_ready(bench: Bench) -> None:
    """To systemd a service that ends without having been ready has failed."""
    bench.service.ended()
    assert bench.heard() == ["READY=1", "STOPPING=1"]


def test_what_was_not_heard_is_repeated(tmp_path: Path, bench: Bench) -> None:
    """A manager whose queue was full hears of READY a moment later."""
    filler = Notifier(bench.listening.getsockname())
    while filler.send("x"):
        pass
    bench.service.started()
    bench.heard()
    assert "READY=1" in bench.told()


def test_time_is_asked_for_only_while_a_save_gets_on(bench: Bench) -> None:
    """Not in training, not without a write, and not for one that stands still."""
    bench.writing.beat()
    assert EXTENSION not in bench.told()
    bench.stopping = True
    assert EXTENSION in bench.told()
    bench.now += PROGRESS_SECONDS
    assert EXTENSION not in bench.told()
    bench.writing.beat()
    assert EXTENSION in bench.told()
    bench.writing.rest()
    assert EXTENSION not in bench.told()


@pytest.mark.parametrize("thread", [lambda bench: bench.writing, lambda bench: bench.copying])
def test_no_sign_of_health_with_a_stuck_thread(
    bench: Bench, thread: Callable[[Bench], Heartbeat]
) -> None:
    """A thread that has work and has not got on with it for long; one that rests is well."""
    thread(bench).beat()
    bench.now += STUCK_SECONDS
    assert "WATCHDOG=1" not in bench.told()
    thread(bench).rest()
    assert "WATCHDOG=1" in bench.told()


def test_status_text() -> None:
    """One line with the state, the place, the loss and the age of the newest checkpoint."""
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
