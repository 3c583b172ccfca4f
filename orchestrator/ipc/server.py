"""The Unix socket on which the trainer and the command line reach the supervisor."""

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
    peer_is_us,
    send_with_descriptors,
)

SOCKET_NAME = "socket"
ACCEPT_RETRY_SECONDS = 0.2
DIRECTORY_PREFIX = "orchestrator-"
# sun_path has 108 bytes on Linux and 104 on macOS, one of them the final zero.
MAXIMUM_PATH_BYTES = 103


class Peer:
    """One connection; its end is the message ``lost`` from it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, message: Message, descriptors: Iterable[int] = ()) -> None:
        """Send without waiting; a peer that is gone or does not read misses it.

        Everything that must arrive is on the control page too.
        """
        with contextlib.suppress(OSError):
            if descriptors:
                send_with_descriptors(self._connection, message, descriptors)
            else:
                self._connection.send(encode(message))


Handler = Callable[[Peer, Message], Awaitable[None]]


class Channel:
    """Listens, checks who connects, and hands each message to the supervisor."""

    def __init__(self, handle: Handler) -> None:
        """Listen. Raises ConfigError when no directory gives a short enough socket path."""
        self._handle = handle
        self._directory = short_directory()
        self.path = str(self._directory / SOCKET_NAME)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to accept connections."""
        self._add(self._accept())

    def close(self) -> None:
        """Stop, and remove the socket from the filesystem."""
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
                # Too many open files, say: who waits is served when some were closed.
                await asyncio.sleep(ACCEPT_RETRY_SECONDS)
                continue
            connection.setblocking(False)
            self._add(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with connection:
            if not peer_is_us(connection):
                return
            peer, buffer = Peer(connection), LineBuffer()
            # A broken or foreign client must not disturb the run: drop it.
            with contextlib.suppress(OSError, ValueError):
                while data := await loop.sock_recv(connection, RECEIVE_BYTES):
                    for message in buffer.feed(data):
                        await self._handle(peer, message)
            await self._handle(peer, {"type": "lost"})


def remove_abandoned(socket_path: object) -> None:
    """Remove the socket of a supervisor that was killed, and its directory if it is then empty.

    The path comes from a file that anybody may have written: nothing is removed recursively.
    """
    path = Path(str(socket_path))
    if path.name == SOCKET_NAME and path.parent.name.startswith(DIRECTORY_PREFIX):
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()


def short_directory() -> Path:
    """A private directory whose socket path fits: a run directory may lie arbitrarily deep."""
    candidates = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp")
    for parent in filter(None, candidates):
        with contextlib.suppress(OSError):
            directory = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir=parent))
            if len(os.fsencode(directory / SOCKET_NAME)) <= MAXIMUM_PATH_BYTES:
                return directory
            directory.rmdir()
    raise ConfigError(
        "cannot make a socket: no temporary directory is writable and has a path of at most "
        f"{MAXIMUM_PATH_BYTES - len(SOCKET_NAME) - 30} bytes; set TMPDIR to a short one"
    )
