"""Available memory, and the memory of processes.

The limits and counters of control groups are read in version 1 and in version 2.
"""

import contextlib
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.system.capabilities import Capability, is_available

_V1_UNLIMITED = 1 << 60
ROOT = Path("/")


@dataclass(frozen=True)
class GroupVersion:
    """The file names of a memory control group in one version of control groups."""

    mount: str
    limit: str
    usage: str
    cache: str
    events: str


_V1 = GroupVersion(
    mount="memory",
    limit="memory.limit_in_bytes",
    usage="memory.usage_in_bytes",
    cache="total_inactive_file",
    events="memory.oom_control",
)
_V2 = GroupVersion(
    mount="",
    limit="memory.max",
    usage="memory.current",
    cache="inactive_file",
    events="memory.events",
)


def available_bytes(root: Path = ROOT) -> int:
    """Return the bytes that this process can allocate without swapping or being killed.

    The result is the minimum of the system's available memory and of what is left in each control
    group of this process. ``root`` is the directory that contains /proc and /sys.
    """
    available = [
        available
        for version, groups in memory_groups(root)
        for group in groups
        if (available := _available_in_group(group, version)) is not None
    ]
    return max(0, min([psutil.virtual_memory().available, *available]))


def limit_bytes(pid: int | str, root: Path = ROOT) -> int | None:
    """Return the memory limit of a process (or ``self``) in bytes; None without a limit.

    The tightest limit of its control groups counts.
    """
    limits = [
        limit
        for version, groups in memory_groups(root, str(pid))
        for group in groups
        if (limit := _limit(group, version)) is not None
    ]
    return min(limits, default=None)


def process_tree_bytes(pid: int) -> int:
    """Return the resident bytes of a process and its descendants; shared memory counts once.

    Pages that stay shared after a fork count for each process: to tell them apart would cost the
    kernel milliseconds for every GB.
    """
    private, shared = 0, 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                info = member.memory_info()
                shared_bytes = getattr(info, "shared", 0)
                private += info.rss - shared_bytes
                shared = max(shared, shared_bytes)
    return private + shared


def private_bytes(pid: int) -> int | None:
    """Return the bytes that the end of a process would free; None if they cannot be read."""
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return None


@contextlib.contextmanager
def memory_limited(more_bytes: int) -> Iterator[None]:
    """Let this process take at most ``more_bytes`` of address space in the block.

    An allocation beyond that fails with MemoryError, or as the library that makes it says. Not for
    a process whose other threads are at work. There is no limit on systems that do not enforce it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = psutil.Process().memory_info().vms + more_bytes
    if soft != resource.RLIM_INFINITY:
        wanted = min(wanted, soft)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def memory_groups(root: Path, pid: str = "self") -> Iterator[tuple[GroupVersion, list[Path]]]:
    """Yield the memory control groups of a process: its own first, then every group above it."""
    if root == ROOT and not is_available(Capability.PROC):
        return
    try:
        lines = (root / "proc" / pid / "cgroup").read_text().splitlines()
    except OSError:
        return  # not Linux, a hidden /proc, or the process has ended
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version = _V2
        elif "memory" in controllers.split(","):
            version = _V1
        else:
            continue
        top = root / "sys/fs/cgroup" / version.mount
        # In a container the path is the host's, and the container's group is mounted at the top.
        own = top / path.lstrip("/")
        yield version, [own, *own.parents] if os.path.isdir(own) else [top]


def _limit(group: Path, version: GroupVersion) -> int | None:
    try:
        limit = (group / version.limit).read_text().strip()
        return None if limit == "max" or int(limit) >= _V1_UNLIMITED else int(limit)
    except (OSError, ValueError):
        return None


def _available_in_group(group: Path, version: GroupVersion) -> int | None:
    limit = _limit(group, version)
    if limit is None:
        return None
    try:
        # Cached file pages count as used, but the kernel drops them when it needs memory.
        cache = counters(group / "memory.stat").get(version.cache, 0)
        return limit - int((group / version.usage).read_text()) + cache
    except (OSError, ValueError):
        return None


def counters(file: Path) -> dict[str, int]:
    """Return the counters in a file of a control group. Raises OSError and ValueError."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) == 2}
