"""The descriptors that this process was given by its parent, beside the standard ones."""

import contextlib
import os

FIRST = 3


def given_descriptors() -> tuple[int, ...]:
    """Return the inheritable descriptors; call it before anything is opened.

    A shell's ``<(...)`` is one, and so is a socket of a parent. What Python opens itself is not
    inheritable, and what systemd hands over is for this process alone.
    """
    passed_by_systemd = range(FIRST, FIRST + _listen_fds())
    found = []
    with contextlib.suppress(OSError):
        for number in map(int, os.listdir("/dev/fd")):
            with contextlib.suppress(OSError):  # that of the listing is closed
                if (
                    number >= FIRST
                    and number not in passed_by_systemd
                    and os.get_inheritable(number)
                ):
                    found.append(number)
    return tuple(sorted(found))


def _listen_fds() -> int:
    with contextlib.suppress(ValueError):
        if int(os.environ.get("LISTEN_PID", "0")) == os.getpid():
            return int(os.environ.get("LISTEN_FDS", "0"))
    return 0
