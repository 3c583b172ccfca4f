"""Forking a process that has imported much and computed nothing: whether that is safe, and how.

A fork has one thread and the locks of all, and what a GPU's driver knows of a process is not true
of its fork. So a process with a second thread, or one that has opened a device, is not forked.
"""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable

_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri")
# Those of torch's modules that know whether a fork has broken them.
_BACKENDS = ("cuda", "xpu", "mps", "mtia")


def try_fork() -> bool:
    """Fork once; whether what the fork finds is as it would be in a new process.

    BLAS libraries end before a fork the threads that they started when they were imported, and
    start them anew when they have something to compute.
    """
    pid = os.fork()
    if pid == 0:
        is_sound = False
        try:
            is_sound = _is_sound()
        finally:
            os._exit(0 if is_sound else 1)
    return os.waitpid(pid, 0)[1] == 0


def fork_to_parent(announce: Callable[[int], None]) -> bool:
    """Fork a child that is our parent's, in a session of its own; True in the child.

    Our parent must be a subreaper: a child whose own parent has ended is handed to it. The child
    begins after ``announce`` was given its process id here, and ends should that not come to be.
    Raises OSError where there is no room for another process.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        between = os.fork()
        if between == 0:
            ours.close()
            _fork_again()
            theirs.send(str(os.getpid()).encode())
            if not theirs.recv(1):
                os._exit(0)
            os.setsid()
            return True
        theirs.close()
        os.waitpid(between, 0)
        pid = ours.recv(32)
        if not pid:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        announce(int(pid))
        ours.send(b"1")
        return False


def draw_anew() -> None:
    """Seed what a new process seeds by itself, and all forks of this one would have in common."""
    # Python's own generator does so after each fork.
    if (numpy := sys.modules.get("numpy.random")) is not None:
        numpy.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.seed()


def _fork_again() -> None:
    """Return in the child only."""
    try:
        pid = os.fork()
    except OSError:
        os._exit(1)
    if pid:
        os._exit(0)


def _is_sound() -> bool:
    for backend in _BACKENDS:
        is_broken = getattr(sys.modules.get(f"torch.{backend}"), "_is_in_bad_fork", None)
        if is_broken is not None and is_broken():
            return False
    return not any(name.startswith(_DEVICES) for name in _open_files())


def _open_files() -> list[str]:
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return names
