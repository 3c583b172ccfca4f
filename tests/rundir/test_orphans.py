"""Who may write to a run directory names no process that a start of the run ends."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ConfigError
from orchestrator.rundir import orphans
from orchestrator.rundir.lock import RunLock
from orchestrator.rundir.orphans import OrphanEnding
from orchestrator.rundir.paths import RunDir
from orchestrator.system import process_tree
from tests.support import NOBODY, wait_until

# Takes a lock and leaves it to a child, as daemons do: the process that has taken it is dead.
DAEMON = """
import fcntl, os, sys, time
file = open(sys.argv[1], 'w')
fcntl.flock(file, fcntl.LOCK_EX)
if os.fork():
    os._exit(0)
os.setsid()
print(os.getpid(), flush=True)
time.sleep(600)
"""


@dataclass(frozen=True)
class ReplacingEnding(OrphanEnding):
    """Ends orphans after a colleague has put a link in the place of the lock."""

    lock: Path
    elsewhere: Path
    held: int

    def end(self, owner: int, lock_file: Any, **certainty: bool) -> None:
        self.lock.rename(self.lock.with_name("before"))
        self.lock.symlink_to(self.elsewhere)
        os.close(self.held)
        super().end(owner, lock_file, **certainty)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A daemon of this user, and the process that has taken its lock and is dead."""
    words = [sys.executable, "-c", DAEMON, str(tmp_path / "precious")]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as taker:
        assert taker.stdout is not None
        pid = int(taker.stdout.readline())
        taker.wait()
    yield pid, taker.pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_start_ends_no_process_of_another_lock(tmp_path: Path, daemon: tuple[int, int]) -> None:
    """A link in the place of the lock does not make a start end who holds the lock it leads to."""
    pid, taker = daemon
    run = RunDir(tmp_path / "run")
    run.create()
    note = {"pid": taker, "host": socket.gethostname()}
    run.lock_file.write_text(json.dumps(note))
    held = os.open(run.lock_file, os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    ending = ReplacingEnding(0.5, signal.SIGTERM, run.lock_file, tmp_path / "precious", held)
    with pytest.raises(ConfigError, match="its lock was removed or replaced"):
        RunLock(run, ending)
    assert not process_tree.has_ended(pid)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    ("owner", "mode", "is_ended"),
    [(0, 0o600, True), (0, 0o660, False), (0, 0o604, True), (NOBODY, 0o600, False)],
    ids=["private", "group", "readable", "another user's"],
)
@pytest.mark.parametrize("by_supervisor", [True, False])
def test_start_ends_what_holds_its_own_lock(
    tmp_path: Path, owner: int, mode: int, is_ended: bool, by_supervisor: bool
) -> None:
    """What has inherited the lock from a dead process is ended, as the note says.

    Where another user may have passed the lock to it, it must be a supervisor's too.
    """
    run = RunDir(tmp_path / "run")
    run.create()
    run.lock_file.touch()
    os.chown(run.lock_file, owner, owner)
    run.lock_file.chmod(mode)
    words = [sys.executable, "-c", DAEMON, str(run.lock_file)]
    variables = {"ORCHESTRATOR_RUN_DIR": str(run.root)} if by_supervisor else {}
    with subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, **variables}) as taker:
        assert taker.stdout is not None
        pid = int(taker.stdout.readline())
        taker.wait()
    run.lock_file.write_text(json.dumps({"pid": taker.pid, "host": socket.gethostname()}))
    ending = OrphanEnding(5.0, signal.SIGTERM)
    if is_ended or by_supervisor:
        RunLock(run, ending).close()
        wait_until(lambda: process_tree.has_ended(pid), "the end of the daemon")
        return
    ending.end(taker.pid, os.stat(run.lock_file))
    assert not process_tree.has_ended(pid)
    ending.end(taker.pid, os.stat(run.lock_file), owner_is_certain=True)
    wait_until(lambda: process_tree.has_ended(pid), "the end of the daemon")


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    ("mode", "is_certain", "is_orphan"),
    [(0o600, False, True), (0o660, False, False), (0o660, True, False)],
    ids=["private", "group", "group, after its own supervisor"],
)
@pytest.mark.parametrize("by_supervisor", [True, False])
def test_unknown_taker_in_a_container_is_not_taken_for_the_owner(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: int,
    is_certain: bool,
    is_orphan: bool,
    by_supervisor: bool,
) -> None:
    """There the kernel gives 0 for whoever has taken a lock and is dead, also of another job."""
    lock = tmp_path / "lock"
    lock.touch()
    lock.chmod(mode)
    variables = {"ORCHESTRATOR_RUN_DIR": "/run"} if by_supervisor else {}
    with subprocess.Popen(["sleep", "600"], env={**os.environ, **variables}) as holder:
        takers = {holder.pid: {0}}
        monkeypatch.setattr(orphans, "lock_takers", lambda pid, _: takers.get(pid, set()))
        wait_until(
            lambda: b"sleep" in Path(f"/proc/{holder.pid}/cmdline").read_bytes(), "the program"
        )
        found = orphans.Orphans(1234, os.stat(lock), owner_is_certain=is_certain).find()
        holder.kill()
    assert found == ({holder.pid} if is_orphan or by_supervisor else set())
