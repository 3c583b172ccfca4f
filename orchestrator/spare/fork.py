"""Forks a process that has imported modules and computed nothing, if that is safe.

A forked child has one thread, but the locks of all threads of its parent, and a GPU driver's state
is not valid in it. So a process with a second thread or an open device is not forked.
"""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable

_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri")
# The torch modules that know whether a fork has made them unusable.
_BACKENDS = ("cuda", "xpu", "mps", "mtia")


def try_fork() -> bool:
    """Fork a child for a test, and return whether torch and its devices are usable in it.

    The fork also makes BLAS libraries end the threads that they started at import; they start new
    ones when they compute.
    """
    pid = os.fork()
    if pid == 0:
        is_usable = False
        try:
            is_usable = _is_usable()
        finally:
            os._exit(0 if is_usable else 1)
    return os.waitpid(pid, 0)[1] == 0


def fork_to_parent(announce: Callable[[int], None]) -> bool:
    """Fork a process that becomes a child of this process's parent; return True in it.

    The new process has its own session. The parent must be a subreaper, which becomes the parent of
    a process that has lost its own. The child starts after ``announce`` was called here with its
    process id, and exits if that does not happen. Raises OSError when the system allows no further
    process.
    """
    parent_end, child_end = socket.socketpair()
    with parent_end, child_end:
        intermediate = os.fork()
        if intermediate == 0:
            parent_end.close()
            _fork_again()
            child_end.send(str(os.getpid()).encode())
            if not child_end.recv(1):
                os._exit(0)
            os.setsid()
            return True
        child_end.close()
        os.waitpid(intermediate, 0)
        pid = parent_end.recv(32)
        if not pid:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        announce(int(pid))
        parent_end.send(b"1")
        return False


def reseed_generators() -> None:
    """Seed the random generators that would be equal in all forks of this process."""
    # Python's own generator is reseeded after each fork.
    if (numpy := sys.modules.get("numpy.random")) is not None:
        numpy.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.seed()


def _fork_again() -> None:
    """Fork, end the parent, and return only in the child."""
    try:
        pid = os.fork()
    except OSError:
        os._exit(1)
    if pid:
        os._exit(0)


def _is_usable() -> bool:
    for backend in _BACKENDS:
        is_broken = getattr(sys.modules.get(f"torch.{backend}"), "_is_in_bad_fork", None)
        if is_broken is not None and is_broken():
            return False
    return not any(name.startswith(_DEVICES) for name in _open_files())


def _open_files() -> list[str]:
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return names
