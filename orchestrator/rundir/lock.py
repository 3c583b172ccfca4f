"""The lock of a run directory, which allows one training at a time, and its owner."""

import contextlib
import fcntl
import json
import os
import socket
import stat
import time
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError, RunInUseError
from orchestrator.rundir.orphans import OrphanEnding
from orchestrator.rundir.paths import RunDir
from orchestrator.system import process_tree
from orchestrator.system.json_input import parse_object
from orchestrator.system.lock_holder import holder_of
from orchestrator.system.regular_files import open_regular

OWNER_BYTES = 4096
RETRY_SECONDS = 0.05
# `orchestrator status` tests the lock by taking it for an instant, so one failure proves nothing.
BUSY_TIMEOUT_SECONDS = 0.2
# Processes that a killed owner left behind, such as loader workers, take a few seconds to end.
DEAD_OWNER_TIMEOUT_SECONDS = 10.0


class RunLock:
    """The exclusive lock on a run directory, held while any process has its descriptor open.

    The trainer inherits the descriptor. After a supervisor is killed, the lock is therefore held
    until its trainer has ended too, and two trainers never write to one run.
    """

    def __init__(self, run: RunDir, orphan_ending: OrphanEnding | None = None) -> None:
        """Take the lock; with ``orphan_ending``, end what a killed owner has left in the run.

        Raises RunInUseError when the lock is held, and ConfigError when locking fails.
        """
        try:
            self.descriptor = open_regular(run.lock_file, os.O_RDWR | os.O_CREAT, 0o660)
            _restrict(self.descriptor)
        except OSError as error:
            raise ConfigError(
                f"cannot open {run.lock_file}: {error.strerror}; fix this, or move the file away"
            ) from None
        try:
            self._lock(run, orphan_ending)
        except BlockingIOError:
            owner = self._owner()
            os.close(self.descriptor)
            raise RunInUseError(
                f"cannot use the run {run.root}: {_describe(owner, run)}; "
                f"see `orchestrator status {run.root}`, stop it with `orchestrator stop {run.root}`"
            ) from None
        except OSError as error:
            os.close(self.descriptor)
            raise ConfigError(
                f"cannot lock {run.lock_file}: {error.strerror}; "
                "put the run directory on a filesystem that supports flock"
            ) from None
        if not self._is_at(run.lock_file):
            os.close(self.descriptor)
            raise ConfigError(
                f"cannot use the run {run.root}: its lock was removed or replaced while this start "
                "waited for it, as by another start in which nothing ran; run the command again"
            )
        self.previous_owner = self._owner()

    def _is_at(self, path: Path) -> bool:
        """Return whether the lock is that of the run still: another one locks nobody out."""
        try:
            return os.path.samestat(os.lstat(path), os.fstat(self.descriptor))
        except OSError:
            return False

    def _owner(self) -> dict[str, Any]:
        return _parse_owner(os.pread(self.descriptor, OWNER_BYTES, 0))

    def _lock(self, run: RunDir, orphan_ending: OrphanEnding | None) -> None:
        begun, has_ended_orphans = time.monotonic(), False
        deadline = begun + BUSY_TIMEOUT_SECONDS
        while True:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                owner = self._owner()
                ended = has_ended(owner)
                now = time.monotonic()
                if ended or _is_being_killed(owner):
                    # Between the receipt of a SIGKILL and the exit, neither is seen for an instant.
                    deadline = min(now + BUSY_TIMEOUT_SECONDS, begun + DEAD_OWNER_TIMEOUT_SECONDS)
                if now > deadline:
                    raise
            if ended and orphan_ending is not None and not has_ended_orphans:
                # Not by its path, where by now there may be a link to another lock.
                orphan_ending.end(owner["pid"], os.fstat(self.descriptor))
                begun, has_ended_orphans = time.monotonic(), True
            time.sleep(RETRY_SECONDS)

    def write_owner(self, **facts: Any) -> None:
        """Write this process, its host and ``facts`` into the lock file.

        The file is for users, and for commands such as `orchestrator stop`.
        """
        note = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), **facts}).encode()
        with contextlib.suppress(OSError):  # a full disk must not prevent the training
            # One write, whose end is blank: a process that is killed here leaves a whole note.
            length = os.fstat(self.descriptor).st_size
            os.pwrite(self.descriptor, note.ljust(min(length, OWNER_BYTES)), 0)
            os.ftruncate(self.descriptor, len(note))

    def close(self) -> None:
        """Close this process's descriptor; the last process to close its own frees the lock."""
        os.close(self.descriptor)

    def unlock_and_close(self) -> None:
        """Free the lock for all processes that have inherited the descriptor, and close it."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        os.close(self.descriptor)


def lock_owner(run: RunDir) -> dict[str, Any] | None:
    """Return the owner of the lock: pid, host, socket.

    None means that the lock is free; an empty dict that its owner is not known yet.
    """
    try:
        with open(open_regular(run.lock_file, os.O_RDONLY), "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _parse_owner(file.read(OWNER_BYTES))
    except PermissionError:
        # Who may read the file could hold the lock; the kernel tells everybody who does.
        return None if holder_of(run.lock_file) is None else {}
    except OSError:
        return None
    return None


def _restrict(descriptor: int) -> None:
    """Take the right to read the file from those who may not write it, if it is this user's.

    Who may read a file may lock it, and so keep a run from starting.
    """
    facts = os.fstat(descriptor)
    readers = 0 if facts.st_mode & stat.S_IWGRP else stat.S_IRGRP
    if facts.st_uid == os.geteuid() and facts.st_mode & (readers | stat.S_IRWXO):
        with contextlib.suppress(OSError):  # a filesystem without permissions
            os.fchmod(descriptor, stat.S_IMODE(facts.st_mode) & ~(readers | stat.S_IRWXO))


def _describe(owner: dict[str, Any], run: RunDir) -> str:
    """Return which process keeps the lock from being taken."""
    if owner and not has_ended(owner):
        return f"process {owner.get('pid')} on {owner.get('host')} is training in it"
    holder = holder_of(run.lock_file)
    process = "a process" if holder is None else f"process {holder}"
    if not owner:
        return f"{process} is training in it"
    return f"{process} holds its lock, which is not the one that is noted there"


def has_ended(owner: dict[str, Any]) -> bool:
    """Return whether the owner was a process of this host and has ended."""
    pid = _local_pid(owner)
    return pid is not None and process_tree.has_ended(pid)


def _is_being_killed(owner: dict[str, Any]) -> bool:
    pid = _local_pid(owner)
    return pid is not None and process_tree.is_being_killed(pid)


def _local_pid(owner: dict[str, Any]) -> int | None:
    pid = owner.get("pid")
    if type(pid) is not int or pid <= 0 or owner.get("host") != socket.gethostname():
        return None
    return pid


def _parse_owner(note: bytes) -> dict[str, Any]:
    """Return the keys of the note that have the right types; others may have written it."""
    try:
        owner = parse_object(note, has_paths=True)
    except ValueError:
        return {}
    kinds = {"pid": int, "host": str, "socket": str}
    return {key: owner[key] for key, kind in kinds.items() if type(owner.get(key)) is kind}
