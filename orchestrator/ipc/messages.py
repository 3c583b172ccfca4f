"""Messages between supervisor, trainer and the command line: JSON lines over a Unix socket."""

import contextlib
import json
import os
import signal
import socket
import struct
from collections.abc import Iterable
from typing import Any

from orchestrator.system.capabilities import Capability, has

SOCKET_VARIABLE = "ORCHESTRATOR_SOCKET"
RUN_DIR_VARIABLE = "ORCHESTRATOR_RUN_DIR"
ATTEMPT_VARIABLE = "ORCHESTRATOR_ATTEMPT"
RESUME_VARIABLE = "ORCHESTRATOR_RESUME_FROM"

# Has a trainer's interpreters write their stacks down. Ignored by whoever does not know it, and by
# nobody else used but for urgent data on sockets that ask for it.
DUMP_SIGNAL = signal.SIGURG

PROTOCOL_VERSION = 1
MAXIMUM_LINE_BYTES = 1 << 20
MAXIMUM_DESCRIPTORS = 8
RECEIVE_BYTES = 1 << 16

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """One line."""
    return json.dumps(message, default=str).encode() + b"\n"


class LineBuffer:
    """Puts the pieces that a stream socket delivers back together into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages completed by ``data``. Raises ValueError on what is not the protocol."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAXIMUM_LINE_BYTES:
            raise ValueError("a message is too long")
        try:
            messages = [json.loads(line) for line in lines]
        except RecursionError:
            raise ValueError("a message is nested too deeply") from None
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("a message is not an object")
        return messages


class Connection:
    """A blocking connection to the supervisor, for the trainer and the command line."""

    def __init__(self, path: str, timeout_seconds: float) -> None:
        """Connect. Raises OSError when nobody listens there."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_seconds)
        self._buffer = LineBuffer()
        self._waiting: list[Message] = []
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise

    def send(self, message: Message) -> None:
        """Send one message. Raises OSError when the other side is gone."""
        self._socket.sendall(encode(message))

    def offer(self, message: Message) -> None:
        """Send one message if the other side has room for it. Raises OSError when it is gone."""
        with contextlib.suppress(BlockingIOError):
            self._socket.send(encode(message), socket.MSG_DONTWAIT)

    def receive(self) -> Message | None:
        """The next message, None at the end of file. Raises OSError, ValueError, TimeoutError."""
        while not self._waiting:
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                return None
            self._waiting = self._buffer.feed(data)
        return self._waiting.pop(0)

    def receive_with_descriptors(self) -> tuple[Message | None, list[int]]:
        """The first message of a connection and the descriptors that travel with it."""
        data, descriptors, _, _ = socket.recv_fds(self._socket, RECEIVE_BYTES, MAXIMUM_DESCRIPTORS)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        self._waiting = self._buffer.feed(data)
        return (self.receive() if data else None), descriptors

    def set_timeout(self, seconds: float | None) -> None:
        """How long ``receive`` waits; None for as long as the other side lives."""
        self._socket.settimeout(seconds)

    def end(self) -> None:
        """End the connection for everyone; a thread that waits in ``receive`` wakes up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def close(self) -> None:
        """Close our descriptor only: in a forked child the parent's connection lives on."""
        self._socket.close()


def peer_is_us(connection: socket.socket) -> bool:
    """Whether the process at the other end runs as our user (root may always connect)."""
    if not has(Capability.PEER_CREDENTIALS):
        return True  # elsewhere the socket's directory, readable by us alone, is the protection
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, user, _ = struct.unpack("3i", credentials)
    return user in (os.getuid(), 0)


def send_with_descriptors(
    connection: socket.socket, message: Message, descriptors: Iterable[int]
) -> None:
    """Send one message with descriptors (SCM_RIGHTS)."""
    socket.send_fds(connection, [encode(message)], list(descriptors))
