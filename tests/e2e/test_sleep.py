"""A machine that is about to sleep: a real D-Bus daemon, and logind played by the test."""

import asyncio
import contextlib
import json
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
from tests.e2e.hosts.need import skip_or_fail
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
    """Yield the address of a system bus that only this test uses."""
    if shutil.which("dbus-daemon") is None:
        skip_or_fail("dbus-daemon is not installed")
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
    """A logind that gives out delay inhibitors and sends its signal."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self.requests: list[Any] = []
        self.client: str | None = None
        self._inhibitors: list[int] = []
        bus.add_message_handler(self._handle)

    def _handle(self, message: Message) -> bool:
        if message.message_type is not MessageType.METHOD_CALL or message.member != "Inhibit":
            return False
        self.requests.append(message.body)
        self.client = message.sender
        own_end, client_end = os.pipe()
        os.set_blocking(own_end, False)
        self._inhibitors.append(own_end)
        sent = self._bus.send(Message.new_method_return(message, "h", [0], [client_end]))
        sent.add_done_callback(lambda _: os.close(client_end))
        return True

    def prepare_for_sleep(self, begins: bool) -> None:
        self._bus.send(Message.new_signal(PATH, INTERFACE, "PrepareForSleep", "b", [begins]))

    @property
    def may_sleep(self) -> bool:
        """Whether the last inhibitor has been released."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._inhibitors[-1], 1) == b""
        return False


async def send_forged_signals(address: str, client: str | None) -> None:
    """Send, as any user could, signals like logind's: to the client, to all, with a wrong body."""
    stranger = await MessageBus(bus_address=address).connect()
    for destination, signature, body in (
        (client, "b", [True]),
        (None, "b", [True]),
        (client, "s", ["true"]),
        (client, "", []),
    ):
        await stranger.send(
            Message(
                destination=destination,
                path=PATH,
                interface=INTERFACE,
                member="PrepareForSleep",
                signature=signature,
                body=body,
                message_type=MessageType.SIGNAL,
            )
        )
    await stranger.send(
        Message(
            destination=client,
            path="/org/freedesktop/DBus",
            interface="org.freedesktop.DBus",
            member="NameOwnerChanged",
            signature="sss",
            body=[NAME, "", str(stranger.unique_name)],
            message_type=MessageType.SIGNAL,
        )
    )
    await stranger.send(
        Message(
            destination=client,
            path=PATH,
            interface=INTERFACE,
            member="PrepareForSleep",
            signature="b",
            body=[True],
            message_type=MessageType.SIGNAL,
        )
    )
    stranger.disconnect()


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition beside an event loop."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


def test_checkpoint_is_published_before_the_machine_sleeps(
    supervise: Callable[..., Supervised], address: str, warm_trainers: WarmTrainers
) -> None:
    """Each sleep that logind itself announces is delayed until a checkpoint is published."""
    environment = {"DBUS_SYSTEM_BUS_ADDRESS": address}
    command = [*warm_trainers.command, "--epochs", "500", "--step-seconds", "0.05"]

    async def scenario() -> Supervised:
        bus = await MessageBus(bus_address=address, negotiate_unix_fd=True).connect()
        logind = Logind(bus)
        await bus.request_name(NAME)
        run = supervise(command=command, options=("--every", "1h"), environment=environment)
        await until(lambda: logind.requests, "an inhibitor")
        assert logind.requests == [
            ["sleep", "orchestrator", "saving the state of the training", "delay"]
        ]
        await until(lambda: events(run.run, "checkpoint_published"), "the first checkpoint")
        assert not logind.may_sleep
        await send_forged_signals(address, logind.client)
        for count in (1, 2):
            logind.prepare_for_sleep(True)
            await until(lambda: logind.may_sleep, "the release")
            made = [event["reason"] for event in events(run.run, "checkpoint_published")]
            assert made.count("requested") == count
            logind.prepare_for_sleep(False)
            await until(lambda count=count: len(logind.requests) == count + 1, "the next one")
        bus.disconnect()
        return run

    run = asyncio.run(scenario())
    run.signal(signal.SIGTERM)
    status, _, said = run.end()
    assert status == 75
    assert "the machine is about to sleep" in said


def test_training_without_a_system_bus_continues_silently(
    supervise: Callable[..., Supervised], tmp_path: Path
) -> None:
    """A missing bus, or one without logind, causes no message."""
    run = supervise(
        command=["true"],
        options=("--log-format", "json"),
        environment={"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path}/none"},
    )
    status, _, said = run.end()
    assert status == 0
    messages = [json.loads(line)["event"] for line in said.splitlines()]
    assert messages == ["training started", "the command ended with status 0"]
