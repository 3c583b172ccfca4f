"""Which process holds the lock of a file, and a signal that reaches that process alone."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from orchestrator.system.capabilities import Capability, is_available

LOCKS_FILE = Path("/proc/locks")
MAXIMUM_PID = (1 << 22) + 1


def signal_holder(pid: int, lock_file: Path, number: int) -> None:
    """Send a signal to a process that provably holds the exclusive flock of a file.

    ``pid`` comes from a file that others may have written. Raises OSError when it is not the pid of
    a process of this user, or when that process does not hold the lock.
    """
    if not 0 < pid < MAXIMUM_PID:
        raise ProcessLookupError(f"{pid} is not the id of a process")
    if not hasattr(os, "pidfd_open"):
        _check_holder(pid, lock_file)
        os.kill(pid, number)
        return
    # Opened before the check: from then on the number cannot come to mean another process.
    process = os.pidfd_open(pid)
    try:
        _check_holder(pid, lock_file)
        signal.pidfd_send_signal(process, number)
    finally:
        os.close(process)


def holder_of(lock_file: Path) -> int | None:
    """Return the pid that the kernel names for the exclusive flock of a file; None if unknown."""
    try:
        wanted = _identity(os.lstat(lock_file))
        lines = LOCKS_FILE.read_text().splitlines()
    except OSError:
        return None
    return next((pid for line in lines if (pid := _exclusive_holder(line, wanted))), None)


def lock_takers(pid: int, file: os.stat_result) -> set[int]:
    """Return who has taken the exclusive flocks of a file that a process holds.

    A lock that the process has inherited is another's. In a container the kernel gives 0 for one
    that has ended. Raises OSError when the process has ended or belongs to another user.
    """
    takers = set[int]()
    for name in _descriptors_of(pid, file):
        with contextlib.suppress(OSError):  # it has been closed in the meantime
            facts = Path(f"/proc/{pid}/fdinfo/{name}").read_text().splitlines()
            locks = (fact.removeprefix("lock:\t") for fact in facts)
            takers |= {taker for lock in locks if (taker := _exclusive_holder(lock)) is not None}
    return takers


def has_open(pid: int, path: Path) -> bool:
    """Return whether a process has the file at ``path``, which is no link, open.

    The answer is yes where the system does not tell, as of a process in another container.
    """
    if not pid or not is_available(Capability.PROC):
        return True
    try:
        return any(True for _ in _descriptors_of(pid, os.lstat(path)))
    except PermissionError:
        return True
    except OSError:
        return False  # the file is gone, or the process is


def _descriptors_of(pid: int, file: os.stat_result) -> Iterator[str]:
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # it has been closed in the meantime
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), file):
                yield name


def _check_holder(pid: int, lock_file: Path) -> None:
    if not is_available(Capability.PROC):
        _check_opener(pid, lock_file)
        return
    wanted = os.lstat(lock_file)
    if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
        raise PermissionError(f"process {pid} belongs to another user")
    if pid not in lock_takers(pid, wanted):
        raise ProcessLookupError(f"process {pid} does not hold the lock {lock_file}")


def _check_opener(pid: int, lock_file: Path) -> None:
    """Check, where the system does not list locks, that the process has the file open."""
    import psutil  # not above: commands that signal nothing start faster without it

    try:
        process = psutil.Process(pid)
        paths = [Path(file.path) for file in process.open_files()]
        is_own = process.uids().effective == os.geteuid()
    except psutil.Error as error:
        raise ProcessLookupError(str(error)) from None
    itself = lock_file.parent.resolve() / lock_file.name
    if pid == 1 or not is_own or itself not in paths:
        raise ProcessLookupError(f"process {pid} does not hold the lock {lock_file}")


def _exclusive_holder(line: str, wanted: str | None = None) -> int | None:
    """Return the pid in a line such as ``1: FLOCK  ADVISORY  WRITE 4758 fe:00:2501034 0 EOF``."""
    match line.split():
        case [_, "FLOCK", _, "WRITE", pid, identity, *_] if wanted in (None, identity):
            return int(pid)
    return None


def _identity(facts: os.stat_result) -> str:
    return f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
