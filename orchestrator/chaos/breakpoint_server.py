"""The server of one trial's breakpoints: arms them, and answers the processes that they hold."""

import contextlib
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

from orchestrator.breakpoints.trial_files import ARMED_BYTES, ARMED_FILE, HISTORY_FILE, SOCKET_LINK
from orchestrator.ipc.socket_address import make_socket_directory
from orchestrator.system.json_input import parse_object

POLL_SECONDS = 0.02
MESSAGE_SECONDS = 10.0


class HeldProcess:
    """A process that waits at a breakpoint for an answer."""

    def __init__(self, connection: socket.socket, facts: dict[str, Any]) -> None:
        self._connection = connection
        self.facts = facts

    @property
    def breakpoint(self) -> str:
        """The breakpoint's name, ``role:name``."""
        return str(self.facts["breakpoint"])

    @property
    def rank(self) -> int | None:
        """Which rank it is or has launched; None if it is a supervisor at anything else."""
        return self.facts.get("rank")

    def release(self, errno: int | None = None, exception: str | None = None) -> None:
        """Let the process continue; it may be dead.

        With ``errno`` it gets an OSError there, with ``exception`` a RuntimeError with this text.
        """
        answer = {"errno": errno, "exception": exception}
        with contextlib.suppress(OSError), self._connection:
            self._connection.sendall(json.dumps(answer).encode() + b"\n")


class BreakpointServer:
    """The directory that a trial's processes read, and the socket that they ask."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.history_file = directory / HISTORY_FILE
        directory.mkdir()
        self._armed = os.open(
            directory / ARMED_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
        self._arming = 0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket_directory = make_socket_directory()
        address = self._socket_directory / SOCKET_LINK
        self._listener.bind(str(address))
        self._listener.listen()
        self._listener.settimeout(POLL_SECONDS)
        (directory / SOCKET_LINK).symlink_to(address)

    def arm(self, *breakpoints: str, from_step: int = 0) -> None:
        """Hold processes at these breakpoints only, and not before the step ``from_step``."""
        self._arming += 1
        text = " ".join((str(self._arming), str(from_step), *breakpoints)).encode()
        os.pwrite(self._armed, text.ljust(ARMED_BYTES, b"\0"), 0)

    def disarm(self) -> None:
        """Hold no more processes; ``poll`` releases one that is about to connect."""
        self.arm()

    def poll(self, *breakpoints: str, rank: int | None = None) -> HeldProcess | None:
        """Wait for up to 0.02 s for a process at one of these breakpoints; release any other.

        With ``rank`` any other rank is released too, so that nobody waits for it. A process that
        came before the breakpoints were armed again is one of those.
        """
        try:
            connection, _ = self._listener.accept()
        except TimeoutError:
            return None
        connection.settimeout(MESSAGE_SECONDS)
        try:
            with connection.makefile() as lines:
                held = HeldProcess(connection, parse_object(lines.readline()))
        except (OSError, ValueError):
            connection.close()  # the process died while it asked
            return None
        is_rank = rank is None or held.rank in (None, rank)
        is_now = held.facts["arming"] == self._arming
        if held.breakpoint in breakpoints and is_rank and is_now:
            return held
        held.release()
        return None

    def close(self) -> None:
        """Remove the socket. A process that is held then ends by itself."""
        self.disarm()
        self._listener.close()
        shutil.rmtree(self._socket_directory, ignore_errors=True)
        os.close(self._armed)
