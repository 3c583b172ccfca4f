"""The supervisor's Unix socket, to which the trainer and the command line connect."""

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from orchestrator.errors import ConfigError
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
DIRECTORY_PREFIX = "orchestrator-"
# sun_path has 108 bytes on Linux and 104 on macOS, one of them the final zero.
MAXIMUM_PATH_BYTES = 103


class Peer:
    """One connected client. When it disconnects, the handler gets the message ``lost``."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, message: Message, descriptors: Iterable[int] = ()) -> None:
        """Send without waiting; a client that is gone or does not read loses the message.

        Every message that must arrive is on the control page too.
        """
        with contextlib.suppress(OSError):
            if descriptors:
                send_with_descriptors(self._connection, message, descriptors)
            else:
                self._connection.send(encode(message))


Handler = Callable[[Peer, Message], Awaitable[None]]


class MessageServer:
    """Accepts connections of the same user, and passes each message to a handler."""

    def __init__(self, handle: Handler) -> None:
        """Listen. Raises ConfigError when no directory has a short enough path for a socket."""
        self._handle = handle
        self._directory = make_socket_directory()
        self.path = str(self._directory / SOCKET_NAME)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Start accepting connections."""
        self._add(self._accept())

    def close(self) -> None:
        """Close all connections, and remove the socket from the filesystem."""
        for task in self._tasks:
            task.cancel()
        self._listener.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _add(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError:
                # For example too many open files: clients wait until some have been closed.
                await asyncio.sleep(ACCEPT_RETRY_SECONDS)
                continue
            connection.setblocking(False)
            self._add(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with connection:
            if not peer_is_same_user(connection):
                return
            peer, buffer = Peer(connection), LineBuffer()
            # A client that does not speak the protocol must not disturb the run: drop it.
            with contextlib.suppress(OSError, ValueError):
                while data := await loop.sock_recv(connection, RECEIVE_BYTES):
                    for message in buffer.feed(data):
                        await self._handle(peer, message)
            await self._handle(peer, {"type": "lost"})


def remove_stale_socket(socket_path: object) -> None:
    """Remove the socket of a killed supervisor, and its directory if that is then empty.

    The path comes from a file that another program may have written, so nothing is removed
    recursively.
    """
    path = Path(str(socket_path))
    if path.name == SOCKET_NAME and path.parent.name.startswith(DIRECTORY_PREFIX):
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()


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
