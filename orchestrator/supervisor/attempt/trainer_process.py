"""One life of the trainer: start it in a session of its own, wait for it, end its whole tree."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence

from orchestrator.errors import ConfigError
from orchestrator.spare.forked_process import ProcessHandle
from orchestrator.supervisor.attempt.output import Output
from orchestrator.system import process_tree
from orchestrator.system.capabilities import Capability, is_available
from orchestrator.system.process_tree import KillResult
from orchestrator.system.threads import in_thread

KILL_WAIT_SECONDS = 10.0
LAST_OUTPUT_SECONDS = 5.0


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
        process: ProcessHandle,
        output: Output,
        exclude: Callable[[], Collection[int]],
    ) -> None:
        """``process`` has been given the output.

        ``exclude`` tells which other processes below us, with what is below them, are not its own.
        """
        self._process = process
        self._output = output
        self._exclude = exclude
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
        # Not read back: send_signal() takes a process that is gone for one that ended with 0.
        self._process.returncode = returncode = os.waitstatus_to_exitcode(status)
        return returncode

    def ask_to_end(self, number: signal.Signals) -> None:
        """Signal the command itself, never its group."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def tree(self) -> list[int]:
        """The command and all our other descendants, parents first."""
        return process_tree.descendants(self._exclude())

    def kill_tree(self) -> None:
        """SIGKILL to the command and all our descendants, without waiting for their end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        process_tree.kill_descendants(self._exclude())

    async def clean_up(self) -> KillResult:
        """After the command's own end: end what it left behind, collect the last output."""
        exclude = self._exclude()
        if not is_available(Capability.SUBREAPER):
            await in_thread(lambda: process_tree.kill_process_group(self.pid, KILL_WAIT_SECONDS))
        remains = await in_thread(
            lambda: process_tree.kill_all_descendants(KILL_WAIT_SECONDS, exclude)
        )
        remains.seen.add(self.pid)
        await in_thread(lambda: self._output.finish(LAST_OUTPUT_SECONDS))
        return remains
