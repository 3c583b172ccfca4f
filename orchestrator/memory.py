"""How much memory may still be taken, counting control groups, and how much a process has."""

from pathlib import Path

import psutil

_V1_UNLIMITED = 1 << 60


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping or being killed for it.

    The least of what the system has left and of what each control group above us allows, of either
    version. ``root`` is where /proc and /sys are.
    """
    return max(0, min([psutil.virtual_memory().available, *_group_rooms(root)]))


def private_bytes(pid: int) -> int | None:
    """The memory of a process that nobody shares with it, which its end would free."""
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return None


def _group_rooms(root: Path) -> list[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []  # not Linux, or /proc is hidden
    rooms = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit, usage, cache = "", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount, limit, usage = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        top = root / "sys/fs/cgroup" / mount
        # In a container the path is the host's, and our group is the top of what we see.
        below = top / path.lstrip("/")
        groups = [below, *below.parents] if below.is_dir() else [top]
        for group in groups:
            if (group / limit).exists():
                rooms.append(_room(group, limit, usage, cache))
    return [room for room in rooms if room is not None]


def _room(group: Path, limit: str, usage: str, cache: str) -> int | None:
    try:
        allowed = (group / limit).read_text().strip()
        if allowed == "max" or int(allowed) >= _V1_UNLIMITED:
            return None
        statistics = dict(
            line.split(" ", 1) for line in (group / "memory.stat").read_text().splitlines()
        )
        # Cached file pages count as used, but the kernel drops them when memory is needed.
        used = int((group / usage).read_text()) - int(statistics.get(cache, 0))
        return int(allowed) - used
    except (OSError, ValueError):
        return None
