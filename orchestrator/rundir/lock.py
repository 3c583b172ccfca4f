"""The lock of a run directory: who works on the run."""

import contextlib
import fcntl
import json
import os
import socket
import time
from typing import Any

from orchestrator.errors import ConfigError, RunInUseError
from orchestrator.rundir.paths import RunDir

LOOK_SECONDS = 0.2
OWNER_BYTES = 4096
LOCK_RETRY_SECONDS = 0.05
ORPHANS_SECONDS = 10.0


class RunLock:
    """The exclusive lock on a run directory, held as long as any process has its descriptor.

    The trainer inherits the descriptor, so that the lock outlives a killed supervisor until the
    trainer has ended too: two trainers never write one run.
    """

    def __init__(self, run: RunDir) -> None:
        """Take the lock. Raises RunInUseError when it is held, ConfigError when it cannot be."""
        try:
            self.descriptor = os.open(run.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"cannot open {run.lock_file}: {error.strerror}") from None
        try:
            self._lock()
        except BlockingIOError:
            owner = self._owner()
            os.close(self.descriptor)
            held_by = f"process {owner.get('pid')} on {owner.get('host')}" if owner else "a process"
            raise RunInUseError(
                f"cannot use the run {run.root}: {held_by} is training in it; "
                f"see `orchestrator status {run.root}`, stop it with `orchestrator stop {run.root}`"
            ) from None
        except OSError as error:
            os.close(self.descriptor)
            raise ConfigError(
                f"cannot lock {run.lock_file}: {error.strerror}; "
                "put the run directory on a filesystem that has flock"
            ) from None
        self.former_owner = self._owner()

    def _owner(self) -> dict[str, Any]:
        return _parse_owner(os.pread(self.descriptor, OWNER_BYTES, 0))

    def _lock(self) -> None:
        # `orchestrator status` looks at the lock by taking it for an instant: one try is not proof.
        # What a killed owner left behind, loader workers say, takes a few seconds to end.
        seconds = ORPHANS_SECONDS if _is_dead(self._owner()) else LOOK_SECONDS
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(LOCK_RETRY_SECONDS)

    def sign(self, **facts: Any) -> None:
        """Note in the lock file who holds it, for people and for `orchestrator stop`."""
        note = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), **facts}).encode()
        with contextlib.suppress(OSError):  # a full disk is no reason not to train
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, note, 0)

    def release(self) -> None:
        """Close our descriptor; the lock is free when the last holder has done so."""
        os.close(self.descriptor)

    def free(self) -> None:
        """Unlock for all holders, such as processes that were forked meanwhile, and close."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        os.close(self.descriptor)


def lock_owner(run: RunDir) -> dict[str, Any] | None:
    """Who holds the lock: pid, host, socket. None where it is free; empty before it is signed."""
    try:
        with open(run.lock_file, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _parse_owner(file.read(OWNER_BYTES))
    except OSError:
        return None
    return None


def _is_dead(owner: dict[str, Any]) -> bool:
    """Whether the process that signed the lock ran here and has ended."""
    pid = owner.get("pid")
    if not isinstance(pid, int) or pid <= 0 or owner.get("host") != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


def _parse_owner(note: bytes) -> dict[str, Any]:
    try:
        owner = json.loads(note)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}
