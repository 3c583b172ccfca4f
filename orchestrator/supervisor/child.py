"""One life of the trainer: start it in a session of its own, wait for it, end its whole tree."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import psutil

from orchestrator.errors import ConfigError
from orchestrator.supervisor.output import Output
from orchestrator.supervisor.threads import in_thread

PR_SET_CHILD_SUBREAPER = 36
KILL_WAIT_SECONDS = 10.0
LAST_OUTPUT_SECONDS = 5.0


def become_subreaper() -> None:
    """Have orphaned descendants handed to us, so that none escapes the end of its attempt.

    Linux only; elsewhere a daemonised grandchild is not found (docs/process-contract.md).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Child:
    """The trainer process and everything it starts."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        output: Output,
        lock_descriptor: int,
    ) -> None:
        """Start it. Raises ConfigError when the command cannot be run at all.

        It inherits the run lock, so that the run stays locked until the last of its processes ends.
        """
        self._output = output
        self.peak_bytes = 0
        """The most memory that the command itself has held, once it has ended."""
        try:
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                stdout=output.descriptor,
                stderr=output.descriptor,
                # A session of its own: a terminal's Ctrl-C reaches the supervisor only, which then
                # asks for a save, and not the loader workers, whose death would prevent it.
                start_new_session=True,
                pass_fds=(lock_descriptor,),
            )
        except OSError as error:
            output.start()
            output.finish(LAST_OUTPUT_SECONDS)
            name = error.filename or command[0]
            raise ConfigError(f"cannot run {name}: {error.strerror}") from None
        output.start()

    @property
    def pid(self) -> int:
        """Process id of the command itself."""
        return self._process.pid

    async def wait(self) -> int:
        """The exit status, negative for a signal."""
        return await in_thread(self._wait)

    def _wait(self) -> int:
        try:
            _, status, usage = os.wait4(self.pid, 0)
        except ChildProcessError:
            return self._process.wait()  # send_signal() looks too, and may have been first
        self.peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode

    def terminate(self) -> None:
        """SIGTERM to the command itself, never to its group."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill_tree(self) -> None:
        """SIGKILL to the command and all its descendants, without waiting for their end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        for process in _descendants():
            with contextlib.suppress(psutil.Error):
                process.kill()

    async def clean_up(self) -> list[int]:
        """After the command's own end: end and reap what it left behind, collect the last output.

        Returns the ids of processes that even SIGKILL did not end in time (uninterruptible sleep).
        """
        survivors = await in_thread(lambda: _end_descendants(KILL_WAIT_SECONDS))
        await in_thread(lambda: self._output.finish(LAST_OUTPUT_SECONDS))
        return survivors


def _descendants() -> list[psutil.Process]:
    """All processes below us; with the subreaper that includes those that lost their parent."""
    return psutil.Process().children(recursive=True)


def _end_descendants(timeout_seconds: float) -> list[int]:
    deadline = time.monotonic() + timeout_seconds
    left = _descendants()
    while left and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        # psutil waits for our direct children with waitpid, which reaps the adopted ones.
        psutil.wait_procs(left, timeout=min(0.5, max(0.0, deadline - time.monotonic())))
        left = _descendants()
    return [process.pid for process in left]


def reap_adopted(child_pid: int | None) -> None:
    """Collect orphans that were handed to us and have ended; leaves ``child_pid`` to its waiter."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ChildProcessError):
            if process.pid != child_pid and process.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(process.pid, os.WNOHANG)
