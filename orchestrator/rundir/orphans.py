"""The processes that a killed process has left in a run: finds them, asks them to end, ends them.

They are told from the processes of a run in use by the lock. The kernel keeps the id of the process
that has taken it, and shows it for each process that has inherited the descriptor.
"""

import contextlib
import os
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from orchestrator.system.capabilities import Capability, is_available
from orchestrator.system.lock_holder import lock_takers
from orchestrator.system.process_tree import PAGE_NAME, Process

POLL_SECONDS = 0.05
KILL_SECONDS = 10.0
# A session that has lost its supervisor ends by itself when the grace period is over.
SESSION_MARGIN_SECONDS = 2.0


class Orphans:
    """The processes that hold a lock which ``owner``, now dead, has taken, and those they started.

    There are none where the system does not show the locks of a process.
    """

    def __init__(self, owner: int, lock_file: os.stat_result) -> None:
        self._owner = owner
        self._lock_file = lock_file
        self._known: dict[int, str] = {}

    def find(self) -> set[int]:
        """Return those that are alive, also those whose parent was found before and has ended.

        The processes of a session that one of them leads belong to them too.
        """
        if not is_available(Capability.PROC):
            return set()
        table = _processes()
        holders = {pid for pid in table if _has_inherited(pid, self._lock_file, self._owner)}
        known = {p for p, begun in self._known.items() if p in table and table[p].started == begun}
        family, larger = set[int](), holders | known
        while larger != family:
            family = larger
            larger = family | {
                pid
                for pid, process in table.items()
                if process.parent in family or process.session in family
            }
        family.discard(os.getpid())
        self._known = {pid: table[pid].started for pid in family}
        return family

    def commands(self) -> set[int]:
        """Return those, of the ones found last, that no other one has started."""
        table = _processes()
        return {p for p in self._known if p in table and table[p].parent not in self._known}


@dataclass(frozen=True)
class OrphanEnding:
    """How orphans are ended: the signal that asks them, and the time that they get."""

    grace_seconds: float
    stop_signal: signal.Signals

    def end(self, owner: int, lock_file: os.stat_result) -> None:
        """Wait for the end of the orphans of ``owner``; ask them at first, and kill them at last.

        A session notices the death of its supervisor, saves and ends. A command without one gets
        the stop signal. Whatever is left after the grace period is killed.
        """
        orphans, asked = Orphans(owner, lock_file), set[int]()
        deadline = time.monotonic() + self.grace_seconds + SESSION_MARGIN_SECONDS
        last = deadline + KILL_SECONDS
        while (found := orphans.find()) and time.monotonic() < last:
            if time.monotonic() >= deadline:
                _signal(found, signal.SIGKILL)
            elif not any(map(_has_session, found)):
                _signal(orphans.commands() - asked, self.stop_signal)
                asked |= found
            time.sleep(POLL_SECONDS)


def _processes() -> dict[int, Process]:
    found = map(Process.read, map(int, filter(str.isdecimal, os.listdir("/proc"))))
    return {process.pid: process for process in found if process and not process.is_dead}


def _has_inherited(pid: int, file: os.stat_result, owner: int) -> bool:
    """Return whether a process has inherited the lock of ``file`` from ``owner``, now dead."""
    with contextlib.suppress(OSError):  # it has ended, or belongs to another user
        return not lock_takers(pid, file).isdisjoint({owner, 0})
    return False


def _has_session(pid: int) -> bool:
    """Return whether a process has the control page, which a session gets."""
    with contextlib.suppress(OSError):
        return f"/memfd:{PAGE_NAME}" in Path(f"/proc/{pid}/maps").read_text(errors="replace")
    return False


def _signal(pids: Collection[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            os.kill(pid, number)
