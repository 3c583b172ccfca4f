"""The other side of the breakpoints: arms places, and decides on the processes that are held."""

import contextlib
import json
import os
import select
import shutil
import socket
from pathlib import Path
from typing import Any

from orchestrator.breakpoints import ARMED_BYTES, ARMED_FILE, HISTORY_FILE, SOCKET_LINK
from orchestrator.ipc.server import make_socket_directory
from orchestrator.system.json_input import parse_object

LOOK_SECONDS = 0.02
MESSAGE_SECONDS = 10.0


class Held:
    """A process that waits for our answer."""

    def __init__(self, connection: socket.socket, facts: dict[str, Any]) -> None:
        self._connection = connection
        self.facts = facts

    @property
    def place(self) -> str:
        """``role:name``."""
        return str(self.facts["place"])

    def release(self, errno: int | None = None) -> None:
        """Let it go on, with an OSError where ``errno`` is given; it may be dead by now."""
        with contextlib.suppress(OSError), self._connection:
            self._connection.sendall(json.dumps({"errno": errno}).encode() + b"\n")


class Control:
    """The directory of one trial that its processes look into, and the socket that they ask."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.history_file = directory / HISTORY_FILE
        directory.mkdir()
        self._armed = os.open(
            directory / ARMED_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket_directory = make_socket_directory()
        address = self._socket_directory / SOCKET_LINK
        self._listener.bind(str(address))
        self._listener.listen()
        (directory / SOCKET_LINK).symlink_to(address)

    def arm(self, *places: str, from_step: int = 0) -> None:
        """Have processes stop at these places only, at those that know of steps from one on."""
        text = " ".join((str(from_step), *places)).encode()
        os.pwrite(self._armed, text.ljust(ARMED_BYTES, b"\0"), 0)

    def disarm(self) -> None:
        """Have none stop any more; who is on the way here is let go at the next look."""
        self.arm()

    def look(self, *places: str) -> Held | None:
        """Wait an instant for a process at one of these places; others are let go."""
        if not select.select([self._listener], [], [], LOOK_SECONDS)[0]:
            return None
        connection, _ = self._listener.accept()
        connection.settimeout(MESSAGE_SECONDS)
        try:
            with connection.makefile() as lines:
                held = Held(connection, parse_object(lines.readline()))
        except (OSError, ValueError):
            connection.close()  # it died while it asked
            return None
        if held.place in places:
            return held
        held.release()
        return None

    def close(self) -> None:
        """Go away: a process that is held then ends by itself."""
        self.disarm()
        self._listener.close()
        shutil.rmtree(self._socket_directory, ignore_errors=True)
        os.close(self._armed)
