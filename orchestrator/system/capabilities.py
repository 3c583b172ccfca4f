"""Optional features of the operating system, and the fallback for each.

``ORCHESTRATOR_WITHOUT=memfd,proc`` (or ``all``) disables the features that it names. The tests use
it to run every fallback; a user can rule out a feature that seems broken.
"""

import functools
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

WITHOUT_VARIABLE = "ORCHESTRATOR_WITHOUT"
ALL = "all"


class Capability(StrEnum):
    """An optional feature; the module that uses it contains the fallback."""

    MEMFD = "memfd"
    DIRECT_IO = "direct_io"
    SUBREAPER = "subreaper"
    PROC = "proc"
    PEER_CREDENTIALS = "peer_credentials"
    THREAD_PRIORITY = "thread_priority"


@dataclass(frozen=True)
class _Feature:
    is_offered: Callable[[], bool]
    fallback: str
    """The effect of the fallback, for users."""


def _proc_is_own() -> bool:
    """Return whether /proc shows the PID namespace of this process."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def _is_linux() -> bool:
    return sys.platform == "linux"


_FEATURES = {
    Capability.MEMFD: _Feature(
        lambda: hasattr(os, "memfd_create"),
        "snapshots are kept in unnamed files of the temporary directory",
    ),
    Capability.DIRECT_IO: _Feature(
        lambda: hasattr(os, "O_DIRECT"), "checkpoints are written through the page cache"
    ),
    Capability.SUBREAPER: _Feature(
        _is_linux, "a process that leaves the trainer's process group is not ended with it"
    ),
    Capability.PROC: _Feature(
        lambda: _proc_is_own() and os.path.exists("/proc/thread-self/children"),
        "processes are found through psutil, which is slower, and control groups are not read",
    ),
    Capability.PEER_CREDENTIALS: _Feature(
        lambda: hasattr(socket, "SO_PEERCRED"),
        "only the private directory of the socket keeps other users out",
    ),
    Capability.THREAD_PRIORITY: _Feature(
        _is_linux, "background threads have the same priority as the training"
    ),
}


def is_available(capability: Capability) -> bool:
    """Return whether the system offers a feature and ORCHESTRATOR_WITHOUT does not disable it."""
    disabled = os.environ.get(WITHOUT_VARIABLE, "")
    if disabled and (disabled == ALL or capability in disabled.split(",")):
        return False
    return _is_offered(capability)


def describe_fallback(capability: Capability) -> str:
    """Return what is different on a system that lacks the feature."""
    return _FEATURES[capability].fallback


def proc_is_foreign() -> bool:
    """Return whether /proc exists and shows another PID namespace, so its numbers mislead."""
    return os.path.exists("/proc/self") and not _proc_is_own()


@functools.cache
def _is_offered(capability: Capability) -> bool:
    return _FEATURES[capability].is_offered()
