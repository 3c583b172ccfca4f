"""Messages to the service manager: datagrams to its socket, as in sd_notify(3)."""

import os
import socket
from array import array
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Self

from orchestrator.system.text import shown_line

SOCKET_VARIABLE = "NOTIFY_SOCKET"
WATCHDOG_VARIABLE = "WATCHDOG_USEC"
WATCHDOG_PID_VARIABLE = "WATCHDOG_PID"
LISTEN_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
FIRST_DESCRIPTOR = 3


class Notifier:
    """A connection to the service manager; does nothing if there is none."""

    def __init__(
        self,
        address: str | None,
        watchdog_seconds: float | None = None,
        stored: Mapping[str, int] | None = None,
    ) -> None:
        """``watchdog_seconds`` is the manager's watchdog timeout; None without a watchdog.

        ``stored`` contains, by name, the descriptors that the manager has kept for this service.
        """
        self.watchdog_seconds = watchdog_seconds
        self.stored = stored or {}
        self._socket: socket.socket | None = None
        if address is not None and address[:1] in ("/", "@"):
            # A leading @ means the abstract namespace, which the kernel marks with a zero byte.
            self._address = "\0" + address[1:] if address.startswith("@") else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            # A manager that does not read its socket must not block the supervisor.
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """Remove the manager's variables from the environment, and create a notifier from them.

        A trainer that inherited the variables could report that the service is stopping, or is
        healthy while the supervisor is not.
        """
        address = environment.pop(SOCKET_VARIABLE, None)
        microseconds = environment.pop(WATCHDOG_VARIABLE, "")
        watched = environment.pop(WATCHDOG_PID_VARIABLE, str(os.getpid()))
        is_watched = microseconds.isdecimal() and watched == str(os.getpid())
        seconds = int(microseconds) / 1e6 if is_watched and int(microseconds) else None
        return cls(address, seconds, _take_descriptors(environment))

    @property
    def is_connected(self) -> bool:
        """Whether there is a service manager."""
        return self._socket is not None

    def send(self, *assignments: str, descriptors: Sequence[int] = ()) -> bool:
        """Send assignments such as ``READY=1``; return whether the manager's socket took them."""
        if self._socket is None:
            return False
        # A line feed inside a text would begin another assignment.
        lines = (shown_line(assignment) for assignment in assignments)
        message = "\n".join(lines).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))]
        try:
            self._socket.sendmsg([message], rights if descriptors else [], 0, self._address)
        except OSError:
            return False
        return True

    def store(self, name: str, descriptor: int) -> None:
        """Store a descriptor with the manager, which returns it after a restart of the service."""
        self.send("FDSTORE=1", f"FDNAME={name}", descriptors=[descriptor])

    def forget(self, name: str) -> None:
        """Remove a descriptor from the manager's store."""
        self.send("FDSTOREREMOVE=1", f"FDNAME={name}")


def _take_descriptors(environment: MutableMapping[str, str]) -> dict[str, int]:
    pid, count, names = (environment.pop(name, "") for name in LISTEN_VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count))
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return dict(zip(names.split(":"), descriptors, strict=False))
