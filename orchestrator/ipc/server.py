"""The supervisor's Unix socket, to which the trainer and the command line connect."""

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path

import structlog

from orchestrator.errors import ConfigError
from orchestrator.ipc.message_schema import checked
from orchestrator.ipc.messages import (
    RECEIVE_BYTES,
    LineBuffer,
    Message,
    encode,
    peer_is_same_user,
    send_with_descriptors,
)

SOCKET_NAME = "socket"
ACCEPT_RETRY_SECONDS = 0.2
# More than commands and sessions of one run need, and far fewer than the limit of descriptors.
MAXIMUM_CONNECTIONS = 64
# A client sends its first message as soon as it is connected.
FIRST_MESSAGE_SECONDS = 10.0
DIRECTORY_PREFIX = "orchestrator-"
# sun_path has 108 bytes on Linux and 104 on macOS, one of them the final zero.
MAXIMUM_PATH_BYTES = 103


class Peer:
    """One connected client. When it disconnects, the handler gets the message ``lost``."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.is_trainer = False
        """Whether it has been given the run's memory; such a connection is never closed early."""

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
        self, handle: Handler, first_message_seconds: float = FIRST_MESSAGE_SECONDS
    ) -> None:
        """Listen. Raises ConfigError when no directory has a short enough path for a socket."""
        self._handle = handle
        self._directory = make_socket_directory()
        self.path = str(self._directory / SOCKET_NAME)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._tasks: set[asyncio.Task[None]] = set()
        self._first_message_seconds = first_message_seconds
        self._clients: dict[Peer, asyncio.Task[None]] = {}
        """The connections, those from which a message came least recently first."""
        self._reserve: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def start(self) -> None:
        """Start accepting connections."""
        self._add(self._accept())

    def close(self) -> None:
        """Close all connections, and remove the socket from the filesystem."""
        for task in self._tasks:
            task.cancel()
        self._listener.close()
        self._release_reserve()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _add(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
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
        timeout: float | None = self._first_message_seconds
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


def remove_stale_socket(socket_path: object) -> None:
    """Remove the socket of a killed supervisor, and its directory if that is then empty.

    The path comes from a file that another program may have written, so nothing is removed
    recursively, and nothing that a process still listens on.
    """
    path = Path(str(socket_path))
    if path.name == SOCKET_NAME and path.parent.name.startswith(DIRECTORY_PREFIX):
        with contextlib.suppress(OSError, ValueError):
            if path.is_socket() and not _is_listened_on(path):
                path.unlink()
                path.parent.rmdir()


def _is_listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # for example full: no proof that it is abandoned
    return True


def make_socket_directory() -> Path:
    """Create a private directory with a path that is short enough for a socket.

    A run directory may have a longer path. Raises ConfigError when no directory is suitable.
    """
    candidates = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp")
    for parent in filter(None, candidates):
        with contextlib.suppress(OSError):
            directory = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir=parent))
            if len(os.fsencode(directory / SOCKET_NAME)) <= MAXIMUM_PATH_BYTES:
                return directory
            directory.rmdir()
    raise ConfigError(
        "cannot create a socket: no temporary directory is writable and has a path of at most "
        f"{MAXIMUM_PATH_BYTES - len(SOCKET_NAME) - 30} bytes; set TMPDIR to a short path"
    )
