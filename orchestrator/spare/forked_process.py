"""A trainer process that the spare has forked, as the supervisor handles it."""

import os
import signal
import subprocess
from typing import TypeAlias


class ForkedProcess:
    """A child process forked by the spare, with the methods of subprocess.Popen that are needed."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self) -> int:
        """Return the exit status; -SIGKILL if other code has reaped the process."""
        return -signal.SIGKILL if self.returncode is None else self.returncode

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless the process has been reaped."""
        if self.returncode is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


ProcessHandle: TypeAlias = subprocess.Popen[bytes] | ForkedProcess
