"""Words to the service manager: datagrams to the socket that it names, as in sd_notify(3)."""

import os
import socket
from array import array
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Self

SOCKET_VARIABLE = "NOTIFY_SOCKET"
WATCHDOG_VARIABLE = "WATCHDOG_USEC"
WATCHDOG_PID_VARIABLE = "WATCHDOG_PID"
LISTEN_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
FIRST_DESCRIPTOR = 3


class Notifier:
    """Speaks to the service manager, and to nobody where there is none."""

    def __init__(
        self,
        address: str | None,
        watchdog_seconds: float | None = None,
        stored: Mapping[str, int] | None = None,
    ) -> None:
        """``watchdog_seconds``: how long the manager waits for a sign of health, if it does.

        ``stored`` are the descriptors, by name, that it has kept since our last life.
        """
        self.watchdog_seconds = watchdog_seconds
        self.stored = stored or {}
        self._socket: socket.socket | None = None
        if address is not None and address[:1] in ("/", "@"):
            # What begins with @ is a name in the abstract namespace, which the kernel marks by a 0.
            self._address = "\0" + address[1:] if address.startswith("@") else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            # A manager that does not read, PID 1 in trouble, must not hold up a supervisor.
            self._socket.setblocking(False)

    @classmethod
    def take(cls, environment: MutableMapping[str, str]) -> Self:
        """Take the manager's variables out of the environment.

        A service has one voice: a trainer that inherited them could say that the service is
        stopping, or is well while we are not.
        """
        address = environment.pop(SOCKET_VARIABLE, None)
        microseconds = environment.pop(WATCHDOG_VARIABLE, "")
        watched = environment.pop(WATCHDOG_PID_VARIABLE, str(os.getpid()))
        is_watched = microseconds.isdecimal() and watched == str(os.getpid())
        seconds = int(microseconds) / 1e6 if is_watched and int(microseconds) else None
        return cls(address, seconds, _take_descriptors(environment))

    @property
    def is_heard(self) -> bool:
        """Whether there is a service manager."""
        return self._socket is not None

    def send(self, *assignments: str, descriptors: Sequence[int] = ()) -> bool:
        """Say ``READY=1`` and the like; False where it has to be said again, or to nobody."""
        if self._socket is None:
            return False
        message = "\n".join(assignments).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))]
        try:
            self._socket.sendmsg([message], rights if descriptors else [], 0, self._address)
        except OSError:
            return False
        return True

    def store(self, name: str, descriptor: int) -> None:
        """Have a descriptor kept, and given back should we be started again."""
        self.send("FDSTORE=1", f"FDNAME={name}", descriptors=[descriptor])

    def forget(self, name: str) -> None:
        """Have a descriptor kept no longer."""
        self.send("FDSTOREREMOVE=1", f"FDNAME={name}")


def _take_descriptors(environment: MutableMapping[str, str]) -> dict[str, int]:
    pid, count, names = (environment.pop(name, "") for name in LISTEN_VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count))
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return dict(zip(names.split(":"), descriptors, strict=False))
