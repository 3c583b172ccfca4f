"""Saves before the machine sleeps: logind delays the sleep while the state is written to disk.

A snapshot in memory survives suspend, but not a battery that runs out in the meantime, nor a resume
that fails. The D-Bus library is optional (the extra `laptop`). Without it, without a system bus or
without logind this module does nothing.
"""

import asyncio
import contextlib
import importlib
import os
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from orchestrator.errors import NoThreadError
from orchestrator.system.races import first_of
from orchestrator.system.threads import in_thread

# Name, path and interface.
BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
MANAGER = (
    "org.freedesktop.login1",
    "/org/freedesktop/login1",
    "org.freedesktop.login1.Manager",
)
MATCH = f"type='signal',sender='{MANAGER[0]}',interface='{MANAGER[-1]}'"
OWNER_MATCH = f"type='signal',sender='{BUS[0]}',member='NameOwnerChanged',arg0='{MANAGER[0]}'"
REPLY_SECONDS = 10.0
RECONNECT_SECONDS = 60.0
# logind itself waits no longer than InhibitDelayMaxSec, by default 5 s.
SAVE_SECONDS = 60.0

Save = Callable[[], Awaitable[object]]


async def save_before_sleep(save: Save) -> None:
    """Call ``save`` each time the machine is about to sleep; return if logind is not available."""
    try:
        await in_thread(lambda: importlib.import_module("dbus_fast.aio"))
    except (ImportError, NoThreadError):
        return
    while True:
        inhibitor = _Inhibitor(save)
        try:
            was_connected = await inhibitor.hold()
        finally:
            inhibitor.close()
        if not was_connected:
            return
        await asyncio.sleep(RECONNECT_SECONDS)


class _Inhibitor:
    """A connection to the system bus, and the descriptor that delays the sleep while it is open."""

    def __init__(self, save: Save) -> None:
        self._bus: Any = None
        self._save = save
        self._descriptor: int | None = None
        self._sleeps: asyncio.Queue[bool] = asyncio.Queue()
        self._logind: str | None = None
        """The unique name of the connection that owns logind's name."""
        self._log = structlog.get_logger()

    async def hold(self) -> bool:
        """Save before each sleep until the connection ends; return False without a connection."""
        from dbus_fast import BusType
        from dbus_fast.aio import MessageBus

        try:
            async with asyncio.timeout(REPLY_SECONDS):
                bus = MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True)
                self._bus = await bus.connect()
                self._bus.add_message_handler(self._handle)
                await self._call(*BUS, "AddMatch", [MATCH])
                await self._call(*BUS, "AddMatch", [OWNER_MATCH])
                owner = await self._call(*BUS, "GetNameOwner", [MANAGER[0]])
                self._logind = owner.body[0]
                await self._inhibit()
        except Exception:  # no bus, no logind, no permission: each call raises its own
            return False
        # However the connection ends, and whatever a call on it raises: connect again.
        with contextlib.suppress(Exception):
            await first_of(self._bus.wait_for_disconnect(), self._save_before_each_sleep())
        return True

    def close(self) -> None:
        """Release the descriptor, and close the connection."""
        self._release()
        if self._bus is not None:
            self._bus.disconnect()

    def _handle(self, message: Any) -> None:
        # Any user may send a signal to this connection alone, which no match rule filters. The
        # bus itself says who the sender is.
        match message.member, message.body:
            case "NameOwnerChanged", [name, _, owner] if message.sender == BUS[0]:
                if name == MANAGER[0]:
                    self._logind = owner
            case "PrepareForSleep", [bool() as begins] if message.interface == MANAGER[-1]:
                if message.sender == self._logind:
                    self._sleeps.put_nowait(begins)

    async def _save_before_each_sleep(self) -> None:
        while True:
            if await self._sleeps.get():
                self._log.info("the machine is about to sleep: saving first")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._save(), SAVE_SECONDS)
                self._release()
            else:
                self._log.info("the machine is awake again")
                await self._inhibit()

    async def _inhibit(self) -> None:
        arguments = ["sleep", "orchestrator", "saving the state of the training", "delay"]
        reply = await self._call(*MANAGER, "Inhibit", arguments)
        self._release()
        self._descriptor = reply.unix_fds[reply.body[0]]

    def _release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    async def _call(
        self, destination: str, path: str, interface: str, member: str, body: list[str]
    ) -> Any:
        """Call a D-Bus method with string arguments. Raises OSError when the call is refused."""
        from dbus_fast import Message, MessageType

        signature = "s" * len(body)
        message = Message(destination, path, interface, member, signature=signature, body=body)
        reply = await asyncio.wait_for(self._bus.call(message), REPLY_SECONDS)
        if reply.message_type is MessageType.ERROR:
            raise OSError(reply.error_name)
        return reply
