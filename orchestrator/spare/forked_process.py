"""A child process that the spare has forked, as the supervisor handles it."""

import os
import signal
import subprocess
from typing import TypeAlias


class ForkedProcess:
    """A child of ours that the spare has forked; what of subprocess.Popen a trainer needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self) -> int:
        """What is left to say where somebody else has collected it: that it was killed."""
        return -signal.SIGKILL if self.returncode is None else self.returncode

    def send_signal(self, sig: int) -> None:
        """Nothing, once it has been collected."""
        if self.returncode is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


TrainerProcess: TypeAlias = subprocess.Popen[bytes] | ForkedProcess
