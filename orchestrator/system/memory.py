"""Memory: how much may still be taken, what processes hold, and whom the OOM killer has ended.

The limits and counters of control groups are read in either version.
"""

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.system.capabilities import Capability, has

_V1_UNLIMITED = 1 << 60
_ROOT = Path("/")
# A worker that was killed longer ago than so many looks is not why the trainer ends now.
_LOOKS_KEPT = 12


@dataclass(frozen=True)
class _Version:
    """What the files of a memory control group are called."""

    mount: str
    limit: str
    usage: str
    cache: str
    events: str


_V1 = _Version(
    mount="memory",
    limit="memory.limit_in_bytes",
    usage="memory.usage_in_bytes",
    cache="total_inactive_file",
    events="memory.oom_control",
)
_V2 = _Version(
    mount="",
    limit="memory.max",
    usage="memory.current",
    cache="inactive_file",
    events="memory.events",
)


def available_bytes(root: Path = _ROOT) -> int:
    """Bytes that can be taken without swapping or being killed for it.

    The least of what the system has left and of what each control group above us allows.
    ``root`` is where /proc and /sys are.
    """
    rooms = [
        room
        for version, groups in _memory_groups(root)
        for group in groups
        if (room := _room(group, version)) is not None
    ]
    return max(0, min([psutil.virtual_memory().available, *rooms]))


def limit_bytes(pid: int | str, root: Path = _ROOT) -> int | None:
    """What the control groups of a process (or ``self``) allow; None where they set no limit."""
    limits = [
        limit
        for version, groups in _memory_groups(root, str(pid))
        for group in groups
        if (limit := _limit(group, version)) is not None
    ]
    return min(limits, default=None)


def tree_bytes(pid: int) -> int:
    """What a process and its descendants hold in memory; what they share counts once.

    But pages that a fork left shared count for each: telling them apart would take the kernel
    milliseconds for every GB.
    """
    private, shared = 0, 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                held = member.memory_info()
                common = getattr(held, "shared", 0)
                private += held.rss - common
                shared = max(shared, common)
    return private + shared


def private_bytes(pid: int) -> int | None:
    """The memory of a process that nobody shares with it, which its end would free."""
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return None


class OomKills:
    """Counts how often the kernel's OOM killer struck in the control groups of a process.

    Where it is in none, the count is the whole system's.
    """

    def __init__(self, pid: int, root: Path = _ROOT) -> None:
        self._pid = str(pid)
        self._root = root
        self._files: set[Path] = set()
        self._looks: deque[dict[Path, int]] = deque(maxlen=_LOOKS_KEPT)

    def look(self) -> None:
        """Note the counters as they are now; a process may have moved to another group."""
        groups = _memory_groups(self._root, self._pid)
        own = (above[0] / version.events for version, above in groups)
        self._files |= {file for file in own if file.exists()}
        files = self._files or {self._root / "proc/vmstat"}
        self._looks.append({file: _oom_kills(file) for file in files})

    def recent(self) -> int:
        """How many it has ended since the first of the looks that are kept."""
        self.look()
        first: dict[Path, int] = {}
        for look in reversed(list(self._looks)):  # a thread may be appending
            first |= look
        return sum(count - first[file] for file, count in self._looks[-1].items())


def _memory_groups(root: Path, pid: str = "self") -> Iterator[tuple[_Version, list[Path]]]:
    """The control groups of a process that may limit its memory, its own first."""
    if root == _ROOT and not has(Capability.PROC):
        return
    try:
        lines = (root / "proc" / pid / "cgroup").read_text().splitlines()
    except OSError:
        return  # not Linux, /proc is hidden, or the process is gone
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version = _V2
        elif "memory" in controllers.split(","):
            version = _V1
        else:
            continue
        top = root / "sys/fs/cgroup" / version.mount
        # In a container the path is the host's, and our group is the top of what we see.
        below = top / path.lstrip("/")
        yield version, [below, *below.parents] if below.is_dir() else [top]


def _limit(group: Path, version: _Version) -> int | None:
    try:
        allowed = (group / version.limit).read_text().strip()
        return None if allowed == "max" or int(allowed) >= _V1_UNLIMITED else int(allowed)
    except (OSError, ValueError):
        return None


def _room(group: Path, version: _Version) -> int | None:
    allowed = _limit(group, version)
    if allowed is None:
        return None
    try:
        # Cached file pages count as used, but the kernel drops them when memory is needed.
        cache = _counters(group / "memory.stat").get(version.cache, 0)
        return allowed - int((group / version.usage).read_text()) + cache
    except (OSError, ValueError):
        return None


def _oom_kills(file: Path) -> int:
    try:
        return _counters(file).get("oom_kill", 0)
    except (OSError, ValueError):
        return 0


def _counters(file: Path) -> dict[str, int]:
    lines = (line.split() for line in file.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) == 2}
