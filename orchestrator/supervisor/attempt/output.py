"""The trainer's output: all of it into output.log, and on to where the supervisor prints.

On a terminal the trainer gets a pseudo-terminal of the same size, so that progress bars look as
they do without us; elsewhere a pipe. The trainer holds our end of it too, since otherwise the
supervisor's death would end the trainer in the middle of its emergency save. It does not write
into the log itself: on a full disk its print() would raise, and end the training.
"""

import contextlib
import fcntl
import os
import pty
import sys
import termios
import threading
import time
from pathlib import Path

from orchestrator.rundir.paths import REAL_PARENTS
from orchestrator.system.heartbeat import Heartbeat
from orchestrator.system.regular_files import open_regular
from orchestrator.terminal.console import Sink

COPY_BYTES = 1 << 16


def open_output(log: Path, target: Sink) -> "Output":
    """The kind of output that suits where the supervisor's own goes. Raises OSError."""
    if sys.stdout.isatty():
        with contextlib.suppress(OSError):
            return TerminalOutput(log, target, sys.stdout.fileno())
    return Output(log, target, os.pipe())


class Output:
    """What the trainer writes into, and a thread that copies from there."""

    def __init__(self, log: Path, target: Sink, ends: tuple[int, int]) -> None:
        """``ends`` are the one to read from and the one to write to."""
        self.keeper, self.descriptor = ends
        """The trainer is to hold the first, and to get the second as output and error."""
        self.pulse = Heartbeat()
        self._log = _Log(log)
        self._target = target
        self._thread = threading.Thread(target=self._copy, name="output", daemon=True)

    @property
    def lost_bytes(self) -> int:
        """How much the disk has refused."""
        return self._log.lost_bytes

    def start(self) -> None:
        """Begin to copy; call it once the trainer has its descriptor."""
        os.close(self.descriptor)
        self._thread.start()

    def finish(self, timeout_seconds: float) -> None:
        """Copy until the last process that can write has let go, at most so long, and close."""
        deadline = time.monotonic() + timeout_seconds
        self._thread.join(timeout_seconds)
        self._target.drain(max(0.0, deadline - time.monotonic()))
        if not self._thread.is_alive():
            os.close(self.keeper)
            self._log.close()

    def _copy(self) -> None:
        # At the end of the last writer, Linux answers EIO for a terminal.
        with contextlib.suppress(OSError):
            while data := os.read(self.keeper, COPY_BYTES):
                self.pulse.beat()
                self._log.write(data)
                self._target.write(data)
                self.pulse.pause()


class TerminalOutput(Output):
    """A pseudo-terminal instead of the pipe."""

    def __init__(self, log: Path, target: Sink, terminal: int) -> None:
        super().__init__(log, target, pty.openpty())
        self._terminal = terminal
        attributes = termios.tcgetattr(self.descriptor)
        attributes[1] &= ~termios.OPOST  # the real terminal adds carriage returns, once is enough
        termios.tcsetattr(self.descriptor, termios.TCSANOW, attributes)
        self.resize()

    def resize(self) -> None:
        """Give the pseudo-terminal the size of the real one."""
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(self._terminal, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(self.keeper, termios.TIOCSWINSZ, size)


class _Log:
    """output.log; what a full disk refuses is counted, and never held against the trainer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self.lost_bytes = 0
        self.write(b"")

    def write(self, data: bytes) -> None:
        try:
            if self._descriptor is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                self._descriptor = open_regular(self._path, flags, real_parents=REAL_PARENTS)
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            self.lost_bytes += len(data)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
