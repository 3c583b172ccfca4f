"""What processes have used since their start: processor time, and bytes that they have moved."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.system.capabilities import Capability, is_available
from orchestrator.system.process_tree import Process

_READ_OR_WRITTEN = ("rchar", "wchar", "read_bytes")


@dataclass(frozen=True)
class ProcessUse:
    """What one process has used, or several together.

    ``moved_bytes`` were read from or written to files, pipes and devices, or read from a disk for
    mapped memory. ``disk_bytes`` were written to files on disks. Both are 0 where they are unknown:
    on a system without /proc, and for a process of another user.
    """

    cpu_seconds: float = 0.0
    moved_bytes: int = 0
    disk_bytes: int = 0


# A process is its id and the time of its start: ids are used again.
Uses = dict[tuple[int, str], ProcessUse]


def uses_of(pids: Iterable[int]) -> Uses:
    """Return what each of the processes that still exist has used."""
    uses: Uses = {}
    for pid in pids:
        if (process := Process.read(pid)) is not None:
            counters = _io_counters(pid)
            uses[pid, process.started] = ProcessUse(
                process.cpu_seconds,
                sum(counters.get(name, 0) for name in _READ_OR_WRITTEN),
                counters.get("write_bytes", 0),
            )
    return uses


def used_between(before: Uses, after: Uses) -> ProcessUse:
    """Return what all processes together have used from one look to the next.

    A new process counts from its start; what one that has ended used last is not known.
    """
    none = ProcessUse()
    pairs = [(before.get(process, none), use) for process, use in after.items()]
    return ProcessUse(
        sum(now.cpu_seconds - then.cpu_seconds for then, now in pairs),
        sum(now.moved_bytes - then.moved_bytes for then, now in pairs),
        sum(now.disk_bytes - then.disk_bytes for then, now in pairs),
    )


def _io_counters(pid: int) -> dict[str, int]:
    if not is_available(Capability.PROC):
        return {}
    with contextlib.suppress(OSError, ValueError):  # it has ended, or belongs to another user
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        return {name: int(value) for name, _, value in (line.partition(":") for line in lines)}
    return {}
