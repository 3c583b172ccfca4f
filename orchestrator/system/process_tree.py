"""The processes below us: finds them, says what they do, ends them all, collects the dead.

On Linux from /proc, where a look at the tree costs as much as the tree is large; psutil reads every
process of the machine for that, and does it elsewhere.
"""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from orchestrator.system.capabilities import Capability, has, proc_misleads

PR_SET_CHILD_SUBREAPER = 36
FIRST_POLL_SECONDS = 0.001
LONGEST_POLL_SECONDS = 0.005
PATIENT_POLL_SECONDS = 0.2
# A look at children while one of them ends may miss another: one look that finds none is no proof.
LOOKS = 2


_STATES = {
    "R": "running",
    "S": "waiting",
    "D": "in uninterruptible sleep",
    "T": "stopped",
    "t": "held by a debugger",
    "Z": "a zombie",
}


def become_subreaper() -> None:
    """Have orphaned descendants handed to us, so that none escapes the end of its attempt.

    Linux only; elsewhere a daemonised grandchild is not found (docs/reference/process-contract.md).
    """
    if has(Capability.SUBREAPER):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(frozen=True)
class Process:
    """What the kernel says of one process; ``state`` is its letter in /proc."""

    pid: int
    name: str
    state: str
    threads: int

    @classmethod
    def look(cls, pid: int) -> "Process | None":
        """None where it has ended. Nothing is read that waits for a lock of the process."""
        if not has(Capability.PROC):
            return cls._look_with_psutil(pid)
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return None
        # The name stands in brackets, and may hold brackets and spaces itself.
        name, _, rest = stat.partition("(")[2].rpartition(")")
        fields = rest.split()
        return cls(pid, name, state=fields[0], threads=int(fields[17]))

    @classmethod
    def _look_with_psutil(cls, pid: int) -> "Process | None":
        try:
            process = psutil.Process(pid)
            state = "Z" if process.status() == psutil.STATUS_ZOMBIE else "S"
            return cls(pid, process.name(), state, threads=1)
        except psutil.Error:
            return None

    @property
    def is_dead(self) -> bool:
        """Whether only its exit status is left; the first thread may end before the others."""
        return self.state in "ZX" and self.threads <= 1

    def words(self) -> str:
        """Its state for people, and where in the kernel it waits, as far as we may know."""
        text = _STATES.get(self.state, self.state)
        place = waits_in(Path(f"/proc/{self.pid}"))
        return f"{text} in {place}" if place and self.state in "SD" else text


def describe(pid: int, tree: Iterable[int]) -> str:
    """What a process seems to do, and those of its tree that can do nothing."""
    looks = [look for look in map(Process.look, [pid, *tree]) if look is not None]
    found = [f"process {look.pid} ({look.name}) is {look.words()}" for look in looks[:1]]
    found += [
        f"its descendant {look.pid} ({look.name}) is {look.words()}"
        for look in looks[1:]
        if look.pid != pid and look.state in "DTt"
    ]
    return "; ".join(found)


def waits_in(directory: Path) -> str:
    """The kernel function in which the process or thread of this directory waits; may be ''."""
    with contextlib.suppress(OSError):
        return (directory / "wchan").read_text().strip("0")
    return ""


def children_of(pid: int) -> list[int]:
    """Its children, dead ones that nobody has collected included."""
    if not has(Capability.PROC):
        with contextlib.suppress(psutil.Error):
            if not proc_misleads():
                return [child.pid for child in psutil.Process(pid).children()]
        return []
    found: list[int] = []
    with contextlib.suppress(OSError):  # it has ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):  # that thread has ended
                found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def descendants(exclude: Collection[int] = ()) -> list[int]:
    """All processes below us, parents first, without ``exclude`` and what is below those.

    With the subreaper that includes processes that lost their parent.
    """
    found: list[int] = []
    parents = [os.getpid()]
    while parents:
        children = [c for p in parents for c in children_of(p) if c not in exclude]
        found += children
        parents = children
    return found


@dataclass
class Remains:
    """What was found when a tree was ended."""

    seen: set[int] = field(default_factory=set)
    """All that were in it."""
    stuck: list[int] = field(default_factory=list)
    """Those that SIGKILL did not end in time: uninterruptible sleep."""
    foreign: set[int] = field(default_factory=set)
    """Those that we may not end: another user's."""


def kill(exclude: Collection[int] = (), groups: set[int] | None = None) -> Remains:
    """SIGKILL to all descendants, without waiting for their end.

    And to the process groups in ``groups``, to which theirs are added: no fork escapes that, as it
    does from a list.
    """
    remains = Remains()
    tree = descendants(exclude)
    if groups is not None:
        groups |= _groups_of(tree, exclude)
        for group in groups:
            with contextlib.suppress(OSError):  # they have ended, or are another user's
                os.killpg(group, signal.SIGKILL)
    for pid in tree:
        remains.seen.add(pid)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        except PermissionError:
            remains.foreign.add(pid)
            continue
        if (process := Process.look(pid)) is not None and not process.is_dead:
            remains.stuck.append(pid)
    return remains


def _groups_of(tree: Iterable[int], exclude: Collection[int]) -> set[int]:
    """The process groups of a tree, without our own and those of ``exclude``."""
    return _groups(tree) - _groups([os.getpid(), *exclude])


def _groups(pids: Iterable[int]) -> set[int]:
    groups = set()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(pid))
    return groups


def end_all(timeout_seconds: float, exclude: Collection[int] = ()) -> Remains:
    """SIGKILL to all descendants until there are none any more, at most so long.

    Again and again, since a process may have forked an instant before it was killed; from then on
    with their groups.
    """
    deadline = time.monotonic() + timeout_seconds
    # Of all that were ever found: a look may come between two processes of a chain and find none.
    groups = _groups_of(descendants(exclude), exclude)
    remains = kill(exclude)
    poll, quiet, some_escaped = FIRST_POLL_SECONDS, 0, False
    while quiet < LOOKS and time.monotonic() < deadline:
        if remains.stuck:
            time.sleep(poll)
            poll = min(2 * poll, LONGEST_POLL_SECONDS)
        # Not while somebody is stuck: in that time the number of a group may become another's.
        found = kill(exclude, groups if some_escaped or not remains.stuck else None)
        if is_new := not found.seen <= remains.seen:
            # One that is dead by now may have left a child that this look has missed.
            some_escaped, poll = True, FIRST_POLL_SECONDS
        quiet = 0 if found.stuck or is_new else quiet + 1
        remains = Remains(remains.seen | found.seen, found.stuck, found.foreign)
    return remains


def end_group(leader: int, timeout_seconds: float) -> None:
    """SIGKILL to a process group until nobody is in it, at most so long.

    What is left of a tree where orphans are not handed to us; its leader may have ended.
    """
    deadline = time.monotonic() + timeout_seconds
    with contextlib.suppress(OSError):  # all have ended, or are another user's
        while time.monotonic() < deadline:
            os.killpg(leader, signal.SIGKILL)
            time.sleep(LONGEST_POLL_SECONDS)


def wait(pids: Collection[int], timeout_seconds: float) -> list[int]:
    """Wait for the end of these processes, at most so long; those that live on."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        left = [p for p in pids if (look := Process.look(p)) is not None and not look.is_dead]
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(PATIENT_POLL_SECONDS)


def reap(keep: Collection[int]) -> None:
    """Collect children that have ended; leaves ``keep`` to those who wait for them."""
    for pid in children_of(os.getpid()):
        if pid not in keep:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
