"""Descendants of this process: finds, describes, kills and reaps them.

On Linux it reads /proc, where the cost grows with the tree. Elsewhere it uses psutil, which reads
every process of the machine.
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

from orchestrator.system.capabilities import Capability, is_available, proc_is_foreign

PR_SET_CHILD_SUBREAPER = 36
# The name of the memory by which /proc tells that a process has a session.
PAGE_NAME = "orchestrator-page"
PENDING_SIGNALS = ("SigPnd:", "ShdPnd:")
# PF_EXITING of the kernel, in the flags of /proc/PID/stat.
EXITING_FLAG = 4
FIRST_POLL_SECONDS = 0.001
LONGEST_POLL_SECONDS = 0.005
PATIENT_POLL_SECONDS = 0.2
# A scan can miss a child while another one ends, so one empty scan proves nothing.
EMPTY_SCANS = 2

_STATES = {
    "R": "running",
    "S": "waiting",
    "D": "in uninterruptible sleep",
    "T": "stopped",
    "t": "held by a debugger",
    "Z": "a zombie",
}


def become_subreaper() -> None:
    """Make the kernel reparent orphaned descendants to this process, so that none escapes.

    Linux only. Elsewhere a daemonised grandchild is not found (docs/reference/process-contract.md).
    """
    if is_available(Capability.SUBREAPER):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(frozen=True)
class Process:
    """The kernel's facts about one process; ``state`` is its letter in /proc.

    ``session`` is the id of the process that leads its session, 0 where that is unknown.
    ``started`` tells it from a later process with the same id. ``cpu_seconds`` is the processor
    time of all its threads.
    """

    pid: int
    name: str
    state: str
    threads: int
    parent: int
    session: int
    started: str
    cpu_seconds: float

    @classmethod
    def read(cls, pid: int) -> "Process | None":
        """Read the facts; None if the process has ended.

        It reads no file for which the kernel takes a lock of the process, since a stuck process
        may hold that lock.
        """
        if not is_available(Capability.PROC):
            return cls._read_with_psutil(pid)
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return None
        # The name is in parentheses, and may itself contain parentheses and spaces.
        name, _, rest = stat.partition("(")[2].rpartition(")")
        fields = rest.split()
        return cls(
            pid,
            name,
            state=fields[0],
            threads=int(fields[17]),
            parent=int(fields[1]),
            session=int(fields[3]),
            started=fields[19],
            cpu_seconds=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        )

    @classmethod
    def _read_with_psutil(cls, pid: int) -> "Process | None":
        try:
            process = psutil.Process(pid)
            state = "Z" if process.status() == psutil.STATUS_ZOMBIE else "S"
            parent, started = process.ppid(), str(process.create_time())
            cpu_seconds = sum(process.cpu_times()[:2])
            return cls(pid, process.name(), state, 1, parent, 0, started, cpu_seconds)
        except psutil.Error:
            return None

    @property
    def is_dead(self) -> bool:
        """Whether only the exit status is left: the first thread may end before the others."""
        return self.state in "ZX" and self.threads <= 1

    def describe_state(self) -> str:
        """Return its state for users, and the kernel function in which it waits if readable."""
        text = _STATES.get(self.state, self.state)
        function = kernel_wait_function(Path(f"/proc/{self.pid}"))
        return f"{text} in {function}" if function and self.state in "SD" else text


def has_ended(pid: int) -> bool:
    """Return whether no process has this id, or only its exit status is left."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    process = Process.read(pid)
    return process is None or process.is_dead


def is_being_killed(pid: int) -> bool:
    """Return whether SIGKILL has reached a process, or it has ended; False if unknown.

    On a busy machine the end of its threads takes a while.
    """
    if not is_available(Capability.PROC):
        return False
    try:
        return all(map(_is_thread_being_killed, Path(f"/proc/{pid}/task").iterdir()))
    except OSError:
        return has_ended(pid)  # if not, it is another user's, and hidden


def _is_thread_being_killed(directory: Path) -> bool:
    try:
        facts = (directory / "status").read_text(errors="replace").splitlines()
        state = (directory / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return True  # it has ended while the others were looked at
    pending = [int(fact.split()[1], 16) for fact in facts if fact.startswith(PENDING_SIGNALS)]
    if any(signals >> (signal.SIGKILL - 1) & 1 for signals in pending):
        return True
    return bool(int(state[6]) & EXITING_FLAG)


def describe_processes(pid: int, tree: Iterable[int]) -> str:
    """Return the state of a process, and of the processes in its tree that cannot run."""
    processes = [process for process in map(Process.read, [pid, *tree]) if process is not None]
    parts = [f"process {p.pid} ({p.name}) is {p.describe_state()}" for p in processes[:1]]
    parts += [
        f"its descendant {p.pid} ({p.name}) is {p.describe_state()}"
        for p in processes[1:]
        if p.pid != pid and p.state in "DTt"
    ]
    return "; ".join(parts)


def kernel_wait_function(directory: Path) -> str:
    """Return the kernel function in which a process or thread waits; '' if it is unknown.

    ``directory`` is its directory in /proc.
    """
    with contextlib.suppress(OSError):
        return (directory / "wchan").read_text().strip("0")
    return ""


def children_of(pid: int) -> list[int]:
    """Return the process ids of its children, including zombies."""
    if not is_available(Capability.PROC):
        with contextlib.suppress(psutil.Error):
            if not proc_is_foreign():
                return [child.pid for child in psutil.Process(pid).children()]
        return []
    found: list[int] = []
    with contextlib.suppress(OSError):  # the process has ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):  # the thread has ended
                found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def descendants(exclude: Collection[int] = ()) -> list[int]:
    """Return all descendants of this process, parents first.

    ``exclude`` and their descendants are left out. For a subreaper the result includes processes
    that have lost their parent.
    """
    found: list[int] = []
    parents = [os.getpid()]
    while parents:
        children = [c for p in parents for c in children_of(p) if c not in exclude]
        found += children
        parents = children
    return found


@dataclass
class KillResult:
    """The processes that were found when a tree was killed."""

    seen: set[int] = field(default_factory=set)
    """Every process of the tree."""
    stuck: list[int] = field(default_factory=list)
    """Processes that did not end in time after SIGKILL: they are in uninterruptible sleep."""
    foreign: set[int] = field(default_factory=set)
    """Processes of another user, which may not be killed."""


def kill_descendants(exclude: Collection[int] = (), groups: set[int] | None = None) -> KillResult:
    """Send SIGKILL to all descendants, and return without waiting for their end.

    With ``groups``, also add the descendants' process groups to it and kill every group in it: a
    new fork escapes a list of processes, but not the kill of its group.
    """
    result = KillResult()
    tree = descendants(exclude)
    if groups is not None:
        groups |= _groups_of(tree, exclude)
        for group in groups:
            with contextlib.suppress(OSError):  # it has ended, or belongs to another user
                os.killpg(group, signal.SIGKILL)
    for pid in tree:
        result.seen.add(pid)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        except PermissionError:
            result.foreign.add(pid)
            continue
        if (process := Process.read(pid)) is not None and not process.is_dead:
            result.stuck.append(pid)
    return result


def _groups_of(tree: Iterable[int], exclude: Collection[int]) -> set[int]:
    """Return the process groups of a tree, except this process's own and those of ``exclude``."""
    return _groups(tree) - _groups([os.getpid(), *exclude])


def _groups(pids: Iterable[int]) -> set[int]:
    groups = set()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(pid))
    return groups


def kill_all_descendants(timeout_seconds: float, exclude: Collection[int] = ()) -> KillResult:
    """Send SIGKILL to all descendants until none is left or the timeout has passed.

    The kill is repeated because a process may have forked an instant before its end; from then on
    it includes their process groups.
    """
    deadline = time.monotonic() + timeout_seconds
    # The groups of all processes ever found: a scan between two processes of a chain finds none.
    groups = _groups_of(descendants(exclude), exclude)
    result = kill_descendants(exclude)
    poll, empty_scans, some_escaped = FIRST_POLL_SECONDS, 0, False
    while empty_scans < EMPTY_SCANS and time.monotonic() < deadline:
        if result.stuck:
            time.sleep(poll)
            poll = min(2 * poll, LONGEST_POLL_SECONDS)
        # No group is killed while a process is stuck: in that time its number may be reused.
        found = kill_descendants(exclude, groups if some_escaped or not result.stuck else None)
        if is_new := not found.seen <= result.seen:
            # A process that has ended by now may have left a child that this scan missed.
            some_escaped, poll = True, FIRST_POLL_SECONDS
        empty_scans = 0 if found.stuck or is_new else empty_scans + 1
        result = KillResult(result.seen | found.seen, found.stuck, found.foreign)
    return result


def kill_process_group(leader: int, timeout_seconds: float) -> None:
    """Send SIGKILL to a process group until it is empty or the timeout has passed.

    It replaces ``kill_all_descendants`` on systems without a subreaper. The leader may have ended.
    """
    deadline = time.monotonic() + timeout_seconds
    with contextlib.suppress(OSError):  # it is empty, or belongs to another user
        while time.monotonic() < deadline:
            os.killpg(leader, signal.SIGKILL)
            time.sleep(LONGEST_POLL_SECONDS)


def wait_for_exit(pids: Collection[int], timeout_seconds: float) -> list[int]:
    """Wait for these processes to end, and return those that are alive after the timeout."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        alive = [
            p for p in pids if (process := Process.read(p)) is not None and not process.is_dead
        ]
        if not alive or time.monotonic() >= deadline:
            return alive
        time.sleep(PATIENT_POLL_SECONDS)


def reap_children(keep: Collection[int]) -> None:
    """Reap children that have ended, except ``keep``, for which other code waits."""
    for pid in children_of(os.getpid()):
        if pid not in keep:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
