"""What a system may offer beyond what all have, and what is done without it.

One table, asked wherever such a thing is used. ``ORCHESTRATOR_WITHOUT=memfd,proc`` (or ``all``)
does without what is there: the tests run like that, and so may who suspects one of them.
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
    """Each has a fallback in the module that uses it."""

    MEMFD = "memfd"
    DIRECT_IO = "direct_io"
    SUBREAPER = "subreaper"
    PROC = "proc"
    PEER_CREDENTIALS = "peer_credentials"
    THREAD_PRIORITY = "thread_priority"


@dataclass(frozen=True)
class _Row:
    is_offered: Callable[[], bool]
    without: str
    """What is different without it, for people."""


def _proc_is_ours() -> bool:
    """Whether /proc is that of our process namespace: its numbers would be others' otherwise."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def _is_linux() -> bool:
    return sys.platform == "linux"


_TABLE = {
    Capability.MEMFD: _Row(
        lambda: hasattr(os, "memfd_create"),
        "snapshots are kept in nameless files in the temporary folder",
    ),
    Capability.DIRECT_IO: _Row(
        lambda: hasattr(os, "O_DIRECT"), "checkpoints are written through the page cache"
    ),
    Capability.SUBREAPER: _Row(
        _is_linux, "processes that leave the trainer's process group are not ended with it"
    ),
    Capability.PROC: _Row(
        lambda: _proc_is_ours() and os.path.exists("/proc/thread-self/children"),
        "processes are found by psutil, which is slower; control groups are not seen",
    ),
    Capability.PEER_CREDENTIALS: _Row(
        lambda: hasattr(socket, "SO_PEERCRED"),
        "only the private folder of the socket keeps other users away",
    ),
    Capability.THREAD_PRIORITY: _Row(
        _is_linux, "background threads have the same priority as training"
    ),
}


def has(capability: Capability) -> bool:
    """Whether the system offers it and nobody has switched it off."""
    without = os.environ.get(WITHOUT_VARIABLE, "")
    if without and (without == ALL or capability in without.split(",")):
        return False
    return _is_offered(capability)


def without(capability: Capability) -> str:
    """What is different where it is missing."""
    return _TABLE[capability].without


def proc_misleads() -> bool:
    """Whether there is a /proc and it shows other processes than ours: worse than none."""
    return os.path.exists("/proc/self") and not _proc_is_ours()


@functools.cache
def _is_offered(capability: Capability) -> bool:
    return _TABLE[capability].is_offered()
