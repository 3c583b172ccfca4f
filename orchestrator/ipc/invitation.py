"""A way to the supervisor that needs no path: a socket that the trainers inherit.

A trainer makes a pair of connected sockets and sends one of them through the inherited one. So each
session has a connection of its own, whose end tells its end, whatever processes have inherited the
invitation. A wrapper that closes descriptors leaves only the path of the supervisor's socket.
"""

import contextlib
import os
import socket
import stat

INVITATION_VARIABLE = "ORCHESTRATOR_INVITATION"


class Invitation:
    """The supervisor's end, and the end that the trainers inherit."""

    def __init__(self) -> None:
        """Make the pair. Raises OSError."""
        self.receiver, self._inherited = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.receiver.setblocking(False)

    @property
    def descriptor(self) -> int:
        """The descriptor that trainers inherit."""
        return self._inherited.fileno()

    @property
    def text(self) -> str:
        """The value of the variable: the number may mean another file behind a wrapper."""
        return f"{self.descriptor}:{os.fstat(self.descriptor).st_ino}"

    def receive(self) -> socket.socket | None:
        """Return the next connection that has arrived; None for anything else that was sent.

        Raises BlockingIOError if nothing has arrived.
        """
        _, descriptors, _, _ = socket.recv_fds(self.receiver, 1, 1)
        connection = None
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
            try:
                connection = socket.socket(fileno=descriptor)
            except OSError:
                os.close(descriptor)
        return connection

    def close(self) -> None:
        """Close both ends."""
        self.receiver.close()
        self._inherited.close()


def accept_invitation(text: str | None, timeout_seconds: float) -> socket.socket | None:
    """Return a connection to the supervisor; None where the invitation is not inherited."""
    with contextlib.suppress(OSError, ValueError):
        number, inode = map(int, (text or "").split(":"))
        facts = os.fstat(number)
        if not stat.S_ISSOCK(facts.st_mode) or facts.st_ino != inode:
            return None
        own_end, other_end = socket.socketpair()
        with other_end, socket.socket(fileno=os.dup(number)) as invitation:
            try:
                invitation.settimeout(timeout_seconds)
                socket.send_fds(invitation, [b"c"], [other_end.fileno()])
            except OSError:
                own_end.close()
                raise
        return own_end
    return None
