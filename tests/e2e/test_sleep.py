"""A machine that is about to sleep: a real D-Bus daemon, and logind played by the test."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import Message, MessageType
from dbus_fast.aio import MessageBus

from orchestrator.hosts.laptop.sleep import MANAGER
from tests.e2e.hosts.need import lacking
from tests.e2e.support import DEADLINE_SECONDS, Supervised, WarmTrainers, events

NAME, PATH, INTERFACE = MANAGER
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={path}</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where a system bus listens that this test has for itself."""
    if shutil.which("dbus-daemon") is None:
        lacking("dbus-daemon is not installed")
    config = tmp_path / "bus.conf"
    config.write_text(BUS.format(path=tmp_path / "bus"))
    daemon = subprocess.Popen(
        ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address=1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert daemon.stdout is not None
    yield daemon.stdout.readline().strip()
    daemon.kill()
    daemon.communicate()


class Logind:
    """Gives out delay inhibitors as logind does, and sends its signal."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self.asked: list[Any] = []
        self._inhibitors: list[int] = []
        bus.add_message_handler(self._hear)

    def _hear(self, message: Message) -> bool:
        if message.message_type is not MessageType.METHOD_CALL or message.member != "Inhibit":
            return False
        self.asked.append(message.body)
        ours, theirs = os.pipe()
        os.set_blocking(ours, False)
        self._inhibitors.append(ours)
        sent = self._bus.send(Message.new_method_return(message, "h", [0], [theirs]))
        sent.add_done_callback(lambda _: os.close(theirs))
        return True

    def prepare_for_sleep(self, begins: bool) -> None:
        self._bus.send(Message.new_signal(PATH, INTERFACE, "PrepareForSleep", "b", [begins]))

    @property
    def may_sleep(self) -> bool:
        """Whether the last inhibitor has been let go of."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._inhibitors[-1], 1) == b""
        return False


async def until(condition: Callable[[], object], what: str) -> None:
    """wait_for beside an event loop."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


def test_state_is_on_the_disk_before_the_machine_sleeps(
    supervise: Callable[..., Supervised], address: str, warm_trainers: WarmTrainers
) -> None:
    """Sleep is held up until a checkpoint is published, and the next one is held up again."""
    environment = {"DBUS_SYSTEM_BUS_ADDRESS": address}
    command = [*warm_trainers.command, "--epochs", "500", "--step-seconds", "0.05"]

    async def play() -> Supervised:
        bus = await MessageBus(bus_address=address, negotiate_unix_fd=True).connect()
        logind = Logind(bus)
        await bus.request_name(NAME)
        run = supervise(command=command, options=("--every", "1h"), environment=environment)
        await until(lambda: logind.asked, "an inhibitor")
        assert logind.asked == [
            ["sleep", "orchestrator", "saving the state of the training", "delay"]
        ]
        await until(lambda: events(run.run, "checkpoint_published"), "the first checkpoint")
        assert not logind.may_sleep
        for sleeps in (1, 2):
            logind.prepare_for_sleep(True)
            await until(lambda: logind.may_sleep, "the release")
            made = [event["reason"] for event in events(run.run, "checkpoint_published")]
            assert made.count("requested") == sleeps
            logind.prepare_for_sleep(False)
            await until(lambda sleeps=sleeps: len(logind.asked) == sleeps + 1, "the next one")
        bus.disconnect()
        return run

    run = asyncio.run(play())
    run.signal(signal.SIGTERM)
    status, _, said = run.end()
    assert status == 75
    assert "the machine is about to sleep" in said


def test_without_a_bus_training_goes_on(
    supervise: Callable[..., Supervised], tmp_path: Path
) -> None:
    """Neither a missing bus nor one that nobody answers on is worth a word."""
    run = supervise(
        command=["true"],
        options=("--log-format", "json"),
        environment={"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path}/none"},
    )
    status, _, said = run.end()
    assert status == 0
    assert said.count('"level"') == said.count('"level": "info"') > 0
