"""One life of the trainer: start it in a session of its own, wait for it, end its whole tree."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence

from orchestrator.errors import ConfigError
from orchestrator.supervisor import processes
from orchestrator.supervisor.output import Output
from orchestrator.supervisor.processes import Remains
from orchestrator.supervisor.threads import in_thread

KILL_WAIT_SECONDS = 10.0
LAST_OUTPUT_SECONDS = 5.0


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

    def kill_tree(self, exclude: Collection[int] = ()) -> None:
        """SIGKILL to the command and all our descendants, without waiting for their end.

        But for ``exclude`` and what is below those.
        """
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        processes.kill(exclude)

    async def clean_up(self, exclude: Collection[int] = ()) -> Remains:
        """After the command's own end: end what it left behind, collect the last output."""
        remains = await in_thread(lambda: processes.end_all(KILL_WAIT_SECONDS, exclude))
        remains.seen.add(self.pid)
        await in_thread(lambda: self._output.finish(LAST_OUTPUT_SECONDS))
        return remains
