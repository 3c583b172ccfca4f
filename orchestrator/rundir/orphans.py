"""The processes that a killed process has left in a run: finds them, asks them to end, ends them.

They are told from the processes of a run in use by the lock. The kernel keeps the id of the process
that has taken it, and shows it for each process that has inherited the descriptor. A process to
which another user has passed a descriptor looks the same: where others may open the lock, and only
a note says who has taken it, what was not started by a supervisor is left alone. So it is in a
container, where the kernel shows one and the same id for all that have ended.
"""

import contextlib
import os
import signal
import stat
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
# In a container the kernel names so whoever has taken a lock and has ended.
_ANY_DEAD = 0
_RUN_DIR = b"ORCHESTRATOR_RUN_DIR="


class Orphans:
    """The processes that hold a lock which ``owner``, now dead, has taken, and those they started.

    There are none where the system does not show the locks of a process.
    """

    def __init__(
        self, owner: int, lock_file: os.stat_result, *, owner_is_certain: bool = False
    ) -> None:
        """``owner_is_certain`` says that the id comes from no file that others may have written."""
        self._owner = owner
        self._lock_file = lock_file
        self._is_own = _only_this_user_opens(lock_file)
        self._is_certain = self._is_own or owner_is_certain
        self._known: dict[int, str] = {}

    def find(self) -> set[int]:
        """Return those that are alive, also those whose parent was found before and has ended.

        The processes of a session that one of them leads belong to them too.
        """
        if not is_available(Capability.PROC):
            return set()
        table = _processes()
        holders = set(filter(self._has_inherited, table))
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

    def _has_inherited(self, pid: int) -> bool:
        """Return whether a process has inherited the lock from the owner."""
        try:
            takers = lock_takers(pid, self._lock_file)
        except OSError:  # it has ended, or belongs to another user
            return False
        if self._owner in takers and self._is_certain:
            return True
        is_possible = self._owner in takers or _ANY_DEAD in takers
        return is_possible and (self._is_own or _was_started_by_supervisor(pid))

    def commands(self) -> set[int]:
        """Return those, of the ones found last, that no other one has started."""
        table = _processes()
        return {p for p in self._known if p in table and table[p].parent not in self._known}


@dataclass(frozen=True)
class OrphanEnding:
    """How orphans are ended: the signal that asks them, and the time that they get."""

    grace_seconds: float
    stop_signal: signal.Signals

    def end(self, owner: int, lock_file: os.stat_result, *, owner_is_certain: bool = False) -> None:
        """Wait for the end of the orphans of ``owner``; ask them at first, and kill them at last.

        A session notices the death of its supervisor, saves and ends. A command without one gets
        the stop signal. Whatever is left after the grace period is killed.
        """
        orphans = Orphans(owner, lock_file, owner_is_certain=owner_is_certain)
        asked = set[int]()
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


def _only_this_user_opens(file: os.stat_result) -> bool:
    return file.st_uid == os.geteuid() and not file.st_mode & (stat.S_IRWXG | stat.S_IRWXO)


def _was_started_by_supervisor(pid: int) -> bool:
    """Return whether a process has begun with the variables of a run, or was forked from one."""
    with contextlib.suppress(OSError):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return any(variable.startswith(_RUN_DIR) for variable in variables)
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
