"""The supervisor's Unix socket, to which the trainer and the command line connect."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path

import structlog

from orchestrator.errors import ConfigError
from orchestrator.ipc.invitation import Invitation
from orchestrator.ipc.message_schema import checked
from orchestrator.ipc.messages import (
    RECEIVE_BYTES,
    LineBuffer,
    Message,
    encode,
    peer_is_same_user,
    send_with_descriptors,
)
from orchestrator.ipc.socket_address import Announce, SocketAddress, ignore

ACCEPT_RETRY_SECONDS = 0.2
CHECK_SECONDS = 1.0
# More than commands and sessions of one run need, and far fewer than the limit of descriptors.
MAXIMUM_CONNECTIONS = 64
# A client sends its first message as soon as it is connected.
FIRST_MESSAGE_SECONDS = 10.0


class Peer:
    """One connected client. When it disconnects, the handler gets the message ``lost``."""

    def __init__(self, connection: socket.socket, *, is_trainer: bool = False) -> None:
        self._connection = connection
        self.is_trainer = is_trainer
        """Whether it was invited, or has been given the run's memory: it is never closed early."""

    def send(self, message: Message, descriptors: Iterable[int] = ()) -> None:
        """Send without waiting; a client that is gone or does not read loses the message.

        Every message that must arrive is on the control page too.
        """
        with contextlib.suppress(OSError):
            if descriptors:
                self.is_trainer = True
                send_with_descriptors(self._connection, message, descriptors)
            else:
                self._connection.send(encode(message))


Handler = Callable[[Peer, Message], Awaitable[None]]


class MessageServer:
    """Accepts connections of the same user, and passes each message to a handler.

    Clients that leave connections open, or the program when it runs out of descriptors, must not
    lock out `orchestrator stop`: connections are capped, and one descriptor is held in reserve.
    """

    def __init__(
        self,
        handle: Handler,
        directory: Path | None = None,
        first_message_seconds: float = FIRST_MESSAGE_SECONDS,
        announce: Announce = ignore,
    ) -> None:
        """Listen in ``directory`` if its path is short enough, else in a temporary one.

        ``announce`` is told the path of each socket before it is made, so that whoever follows a
        killed process can remove it.

        Raises ConfigError when no directory has a short enough path for a socket.
        """
        self._handle = handle
        self._address = SocketAddress(directory, announce)
        self.invitation = Invitation()
        """The way for processes that inherit a descriptor."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._first_message_seconds = first_message_seconds
        self._clients: dict[Peer, asyncio.Task[None]] = {}
        """The connections, those from which a message came least recently first."""
        self._reserve: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def path(self) -> str:
        """Where the command line connects, and a trainer that was not invited."""
        return self._address.path

    def start(self, on_move: Callable[[str], None] | None = None) -> None:
        """Start accepting connections; ``on_move`` is told each new path of the socket."""
        accepting = self._add(self._accept())
        self._add(self._receive_invited())
        self._add(self._keep_address(accepting, on_move))

    def close(self) -> None:
        """Close all connections, and remove the socket from the filesystem."""
        for task in self._tasks:
            task.cancel()
        self._address.close()
        self.invitation.close()
        self._release_reserve()

    def _add(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep_address(
        self, accepting: asyncio.Task[None], on_move: Callable[[str], None] | None
    ) -> None:
        """Make the socket again when it is gone: a log-out and cleaners remove directories."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if self._address.is_there():
                continue
            with contextlib.suppress(OSError, ConfigError):  # until there is room for it
                accepting.cancel()
                await asyncio.wait({accepting})  # it removes a descriptor that must not be reused
                self._address.renew()
                accepting = self._add(self._accept())
                if on_move is not None:
                    on_move(self.path)

    async def _receive_invited(self) -> None:
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.invitation.receiver, arrived.set)
        try:
            while True:
                await arrived.wait()
                arrived.clear()
                with contextlib.suppress(OSError):
                    while True:
                        if (connection := self._next_invited()) is not None:
                            connection.setblocking(False)
                            peer = Peer(connection, is_trainer=True)
                            self._clients[peer] = self._add(self._serve(peer, connection))
        finally:
            loop.remove_reader(self.invitation.receiver)

    def _next_invited(self) -> socket.socket | None:
        """Receive an invited connection. Raises BlockingIOError if there is none."""
        # A connection that arrives while no descriptor is free is lost: the reserve is for it.
        self._release_reserve()
        try:
            return self.invitation.receive()
        finally:
            if not self._take_reserve():
                self._drop_idlest()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._address.listener)
            except OSError:
                # For example too many open files: the reserve and the oldest client make room.
                self._release_reserve()
                self._drop_idlest()
                await asyncio.sleep(ACCEPT_RETRY_SECONDS)
                continue
            connection.setblocking(False)
            peer = Peer(connection)
            self._clients[peer] = self._add(self._serve(peer, connection))
            if len(self._clients) > MAXIMUM_CONNECTIONS or not self._take_reserve():
                self._drop_idlest(but=peer)

    def _take_reserve(self) -> bool:
        """Hold a descriptor in reserve, and return whether there was one to have."""
        with contextlib.suppress(OSError):
            if self._reserve is None:
                self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return self._reserve is not None

    def _release_reserve(self) -> None:
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None

    def _drop_idlest(self, but: Peer | None = None) -> None:
        """Close the connection that has been silent for longest, unless it is the trainer's."""
        idle = (p for p in self._clients if not p.is_trainer and p is not but)
        if (peer := next(idle, None)) is not None:
            self._clients.pop(peer).cancel()

    async def _serve(self, peer: Peer, connection: socket.socket) -> None:
        loop, buffer = asyncio.get_running_loop(), LineBuffer()
        timeout = None if peer.is_trainer else self._first_message_seconds
        with connection:
            try:
                if not peer_is_same_user(connection):
                    return
                # A client that does not speak the protocol must not disturb the run: drop it.
                with contextlib.suppress(OSError, ValueError):
                    while data := await self._receive(loop, connection, timeout):
                        for message in buffer.feed(data):
                            timeout = None
                            self._clients[peer] = self._clients.pop(peer)
                            await self._pass_on(peer, message)
            finally:
                self._clients.pop(peer, None)
            await self._handle(peer, {"type": "lost"})

    async def _receive(
        self, loop: asyncio.AbstractEventLoop, connection: socket.socket, timeout: float | None
    ) -> bytes:
        async with asyncio.timeout(timeout):
            return await loop.sock_recv(connection, RECEIVE_BYTES)

    async def _pass_on(self, peer: Peer, message: Message) -> None:
        try:
            usable = checked(message)
        except ValueError as error:
            structlog.get_logger().warning(f"ignored a message of a client: {error}")
            return
        await self._handle(peer, usable)
