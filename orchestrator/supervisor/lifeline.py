"""The lifeline: a process that cleans up after the supervisor, if the supervisor is killed.

A session notices that its supervisor is dead. A command that has no session, not yet or never,
cannot; the kernel's signal to the children of a dead process reaches only the command itself, not
what a wrapper around it has started. The socket would stay too, if the run is not started again.
"""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator

from orchestrator.errors import OrchestratorError
from orchestrator.ipc.stale_sockets import remove_stale_sockets
from orchestrator.rundir.lock import RunLock
from orchestrator.rundir.orphans import OrphanEnding
from orchestrator.rundir.paths import RunDir
from orchestrator.system.json_input import parse_json
from orchestrator.system.stop_signals import STOP_SIGNALS


@contextlib.contextmanager
def lifeline(run: RunDir, orphan_ending: OrphanEnding) -> Iterator[Callable[[RunLock], None]]:
    """Run the process beside the block; it cleans up the run if the block is killed.

    Enter the block before any thread is started and before the lock is taken: the process is a
    fork. Call what it yields with the lock, before anything inherits that: by then another user
    may have put another file at its path. Without room for a further process there is none.
    """
    run = RunDir(run.root.absolute())
    supervisor = os.getpid()
    watched, held = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(watched)
        os.close(held)
        yield lambda _: None
        return
    if pid == 0:
        try:
            if (lock_file := _watch(watched)) is not None:
                orphan_ending.end(supervisor, lock_file, owner_is_certain=True)
            _remove_socket(run)
        finally:
            os._exit(0)
    os.close(watched)
    try:
        yield lambda lock: _name_lock(held, lock)
    finally:
        _end(pid)  # before its pipe is closed, which would tell it of a death
        os.close(held)


def _name_lock(pipe: int, lock: RunLock) -> None:
    with contextlib.suppress(BrokenPipeError):  # the process was killed
        os.write(pipe, json.dumps(os.fstat(lock.descriptor)).encode())


def _end(pid: int) -> None:
    # Killed and not asked to end: with the rest of the run it may have been stopped by SIGSTOP.
    with contextlib.suppress(ChildProcessError):  # it was killed, and reaped as a child that ended
        if os.waitpid(pid, os.WNOHANG)[0] == 0:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _watch(watched: int) -> os.stat_result | None:
    """Return, when the supervisor has died, the facts of its lock; None if it had none yet."""
    os.setsid()
    for number in (*STOP_SIGNALS, signal.SIGUSR2, signal.SIGPIPE):
        # A scheduler signals every process of a job; the supervisor decides what that means.
        signal.signal(number, signal.SIG_IGN)
    # The readers of the supervisor's output wait for the last process that has it open.
    os.closerange(0, watched)
    os.closerange(watched + 1, os.sysconf("SC_OPEN_MAX"))
    with open(watched, "rb") as told:
        facts = told.read()
    return os.stat_result(parse_json(facts)) if facts else None


def _remove_socket(run: RunDir) -> None:
    with contextlib.suppress(OrchestratorError):  # the run has been started again, or is gone
        lock = RunLock(run)
        remove_stale_sockets(run.root, lock.previous_owner.get("socket"))
        lock.close()
