"""The trainer process: it is started in a session of its own, awaited, and ended with its tree."""

import contextlib
import os
import signal
import sys

from orchestrator.spare.forked_process import ProcessHandle
from orchestrator.supervisor.attempt.output import Output
from orchestrator.supervisor.attempt.unrelated_processes import UnrelatedProcesses
from orchestrator.system import process_tree
from orchestrator.system.capabilities import Capability, is_available
from orchestrator.system.process_tree import KillResult
from orchestrator.system.threads import in_thread

KILL_WAIT_SECONDS = 10.0
LAST_OUTPUT_SECONDS = 5.0


class TrainerProcess:
    """The trainer process and everything that it starts."""

    def __init__(
        self,
        handle: ProcessHandle,
        output: Output,
        unrelated: UnrelatedProcesses,
        stop_signal: signal.Signals,
        from_spare: bool,
    ) -> None:
        """``handle`` is the running process, which writes to ``output``.

        ``stop_signal`` asks a command without a session to end.
        """
        self.from_spare = from_spare
        self._handle = handle
        self._output = output
        self._unrelated = unrelated
        self._stop_signal = stop_signal
        self.peak_bytes = 0
        """The most memory that the command itself has held, once it has ended."""
        output.start()

    @property
    def pid(self) -> int:
        """Process id of the command itself."""
        return self._handle.pid

    async def wait(self) -> int:
        """Wait for the end of the command; return its exit status, negative for a signal."""
        return await in_thread(self._wait)

    def _wait(self) -> int:
        try:
            _, status, usage = os.wait4(self.pid, 0)
        except ChildProcessError:
            return self._handle.wait()  # send_signal() polls too, and may have been first
        self.peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        # Not read back: send_signal() takes a process that is gone for one that ended with 0.
        self._handle.returncode = returncode = os.waitstatus_to_exitcode(status)
        return returncode

    def ask_to_end(self) -> None:
        """Signal the command itself, never its group; continue it if it is stopped."""
        with contextlib.suppress(OSError):  # it has ended, or is root's, as sudo is
            self._handle.send_signal(self._stop_signal)
            self._handle.send_signal(signal.SIGCONT)

    def tree(self) -> list[int]:
        """Return the pids of the command and of all its descendants, parents first."""
        return process_tree.descendants(self._unrelated.pids())

    def kill_command(self) -> None:
        """Send SIGKILL to the command alone; do not wait for its end."""
        with contextlib.suppress(OSError):  # it has ended, or is root's, as sudo is
            self._handle.kill()

    def kill_tree(self) -> None:
        """Send SIGKILL to the command and all related descendants; do not wait for their end."""
        self.kill_command()
        process_tree.kill_descendants(self._unrelated.pids())

    async def kill_group(self) -> None:
        """End the command's group where its orphans do not become children of this process."""
        if not is_available(Capability.SUBREAPER):
            await in_thread(lambda: process_tree.kill_process_group(self.pid, KILL_WAIT_SECONDS))

    async def kill_remains(self) -> KillResult:
        """End what this and other commands have left behind, after their own end."""
        unrelated = self._unrelated.pids()
        return await in_thread(
            lambda: process_tree.kill_all_descendants(KILL_WAIT_SECONDS, unrelated)
        )

    async def finish_output(self) -> None:
        """Copy the last output."""
        await in_thread(lambda: self._output.finish(LAST_OUTPUT_SECONDS))
