"""Messages between supervisor, trainer and command line: JSON lines over a Unix socket."""

import contextlib
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Iterable
from typing import Any

from orchestrator.system.capabilities import Capability, is_available
from orchestrator.system.json_input import parse_object

SOCKET_VARIABLE = "ORCHESTRATOR_SOCKET"
RUN_DIR_VARIABLE = "ORCHESTRATOR_RUN_DIR"
ATTEMPT_VARIABLE = "ORCHESTRATOR_ATTEMPT"
RESUME_VARIABLE = "ORCHESTRATOR_RESUME_FROM"
RESUME_PATHS_VARIABLE = "ORCHESTRATOR_RESUME_PATHS"
# Set for each of several ranks, which RANK alone may be by somebody else.
RANK_VARIABLE = "ORCHESTRATOR_RANK"

# Makes a trainer's interpreters write their stacks. A process without a handler ignores SIGURG, and
# the kernel sends it only for urgent data, to processes that ask for it.
DUMP_SIGNAL = signal.SIGURG

PROTOCOL_VERSION = 1
MAXIMUM_LINE_BYTES = 1 << 20
MAXIMUM_DESCRIPTORS = 8
RECEIVE_BYTES = 1 << 16

# A JSON object whose "type" selects the other keys (docs/reference/process-contract.md).
Message = dict[str, Any]


def several_processes(world_size: object) -> str:
    """Return why a session of several processes is refused."""
    return (
        f"WORLD_SIZE is {world_size}, and this run was started for another number of processes; "
        f"let `orchestrator run --nproc-per-node {world_size}` start them, without torchrun"
    )


def encode(message: Message) -> bytes:
    """Return a message as one line of JSON."""
    return json.dumps(message, default=str).encode() + b"\n"


class LineBuffer:
    """Joins the pieces that a stream socket delivers into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """Return the messages that ``data`` completes.

        Raises ValueError when a line is not a JSON object, or is too long.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAXIMUM_LINE_BYTES:
            raise ValueError("a message is too long")
        return [parse_object(line) for line in lines]


class Connection:
    """A blocking connection to the supervisor, for the trainer and the command line."""

    def __init__(
        self, path: str, timeout_seconds: float, connected: socket.socket | None = None
    ) -> None:
        """Connect, or use a ``connected`` socket.

        Raises OSError when no process of this user or of root listens on the socket at ``path``.
        """
        self._socket = connected or socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_seconds)
        self._buffer = LineBuffer()
        self._waiting: list[Message] = []
        try:
            if connected is None:
                self._socket.connect(path)
                # The path may come from a file that others can write.
                if os.getuid() != 0 and not peer_is_same_user(self._socket):
                    raise PermissionError(f"{path} belongs to another user")
        except (OSError, ValueError) as error:
            self._socket.close()
            raise error if isinstance(error, OSError) else OSError(str(error)) from None

    @property
    def peer_pid(self) -> int:
        """The process that listens at the other end; 0 where the system does not tell."""
        return _peer_credentials(self._socket)[0] if _tells_peers() else 0

    def send(self, message: Message) -> None:
        """Send one message. Raises OSError when the other end is closed."""
        self._socket.sendall(encode(message))

    def send_or_drop(self, message: Message) -> None:
        """Send one message, or drop it if the socket's buffer is full.

        Raises OSError when the other end is closed.
        """
        with contextlib.suppress(BlockingIOError):
            self._socket.send(encode(message), socket.MSG_DONTWAIT)

    def receive(self) -> Message | None:
        """Wait for the next message and return it; None at the end of the stream.

        The timeout covers the whole message, however slowly its bytes come. Raises OSError,
        TimeoutError, or ValueError for data that is not a message.
        """
        timeout = self._socket.gettimeout()
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while not self._waiting:
                if deadline is not None:
                    if (remaining := deadline - time.monotonic()) <= 0:
                        raise TimeoutError("timed out")
                    self._socket.settimeout(remaining)
                data = self._socket.recv(RECEIVE_BYTES)
                if not data:
                    return None
                self._waiting = self._buffer.feed(data)
        finally:
            if timeout is not None:
                self._socket.settimeout(timeout)
        return self._waiting.pop(0)

    def receive_with_descriptors(self) -> tuple[Message | None, list[int]]:
        """Wait for the first message, and return it with the descriptors sent along."""
        data, descriptors, _, _ = socket.recv_fds(self._socket, RECEIVE_BYTES, MAXIMUM_DESCRIPTORS)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        self._waiting = self._buffer.feed(data)
        return (self.receive() if data else None), descriptors

    def set_timeout(self, seconds: float | None) -> None:
        """Set how long ``receive`` waits; None: until the other end is closed."""
        self._socket.settimeout(seconds)

    def shut_down(self) -> None:
        """End the connection in all processes that share it, and wake a waiting ``receive``."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def close(self) -> None:
        """Close this process's descriptor; after a fork the parent's connection stays open."""
        self._socket.close()


def peer_is_same_user(connection: socket.socket) -> bool:
    """Return whether the other end belongs to this process's user or to root."""
    if not _tells_peers():
        return True  # the permissions of the socket's directory are the only protection there
    return _peer_credentials(connection)[1] in (os.getuid(), 0)


def _tells_peers() -> bool:
    return is_available(Capability.PEER_CREDENTIALS)


def _peer_credentials(connection: socket.socket) -> tuple[int, int, int]:
    """Return the process, user and group at the other end."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, user, group = struct.unpack("3i", credentials)
    return pid, user, group


def send_with_descriptors(
    connection: socket.socket, message: Message, descriptors: Iterable[int]
) -> None:
    """Send one message together with descriptors (SCM_RIGHTS). Raises OSError."""
    socket.send_fds(connection, [encode(message)], list(descriptors))
