"""One life of the trainer: start it in a session of its own, wait for it, end its whole tree."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence

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


def start_cold(
    command: Sequence[str], environment: Mapping[str, str], output: Output, lock_descriptor: int
) -> subprocess.Popen[bytes]:
    """Start the command. Raises ConfigError when it cannot be run at all.

    It inherits the run lock, so that the run stays locked until the last of its processes ends.
    """
    try:
        return subprocess.Popen(
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


class Child:
    """The trainer process and everything it starts."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        output: Output,
        spare_pid: Callable[[], int | None],
    ) -> None:
        """``process`` has been given the output; what it starts does not include the spare."""
        self._process = process
        self._output = output
        self._spare_pid = spare_pid
        self.peak_bytes = 0
        """The most memory that the command itself has held, once it has ended."""
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
        for process in _descendants(self._spare_pid()):
            with contextlib.suppress(psutil.Error):
                process.kill()

    async def clean_up(self) -> list[int]:
        """After the command's own end: end and reap what it left behind, collect the last output.

        Returns the ids of processes that even SIGKILL did not end in time (uninterruptible sleep).
        """
        spare_pid = self._spare_pid()
        survivors = await in_thread(lambda: _end_descendants(spare_pid, KILL_WAIT_SECONDS))
        await in_thread(lambda: self._output.finish(LAST_OUTPUT_SECONDS))
        return survivors


def _descendants(spare_pid: int | None) -> list[psutil.Process]:
    """All processes below us but the spare and what it has started.

    With the subreaper that includes those that lost their parent.
    """
    found = psutil.Process().children(recursive=True)
    if spare_pid is None:
        return found
    passed_over = {spare_pid}
    with contextlib.suppress(psutil.Error):
        passed_over |= {p.pid for p in psutil.Process(spare_pid).children(recursive=True)}
    return [process for process in found if process.pid not in passed_over]


def _end_descendants(spare_pid: int | None, timeout_seconds: float) -> list[int]:
    deadline = time.monotonic() + timeout_seconds
    left = _descendants(spare_pid)
    while left and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        # psutil waits for our direct children with waitpid, which reaps the adopted ones.
        psutil.wait_procs(left, timeout=min(0.5, max(0.0, deadline - time.monotonic())))
        left = _descendants(spare_pid)
    return [process.pid for process in left]


def reap_adopted(awaited: Collection[int]) -> None:
    """Collect orphans that were handed to us and have ended; ``awaited`` have their own waiters."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ChildProcessError):
            if process.pid not in awaited and process.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(process.pid, os.WNOHANG)
