"""Copies all of the trainer's output to output.log, and to where the supervisor prints.

On a terminal the trainer gets a pseudo-terminal of the same size, so that progress bars look as
they do without a supervisor; elsewhere it gets a pipe. The trainer holds the supervisor's end of it
too: otherwise the supervisor's death would end the trainer in the middle of its emergency save. It
does not write to the log itself: on a full disk its print() would raise, and end the training.
"""

import contextlib
import fcntl
import math
import os
import pty
import sys
import termios
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.rundir.paths import real_parents_of
from orchestrator.system.heartbeat import Heartbeat
from orchestrator.terminal.console import Sink
from orchestrator.terminal.prefixed_lines import PrefixedLines
from orchestrator.terminal.rotating_file import RotatingFile

COPY_BYTES = 1 << 16
# Each copy costs the same: lines that come one after the other wait for one another.
PAUSE_SECONDS = 0.05
# More than this at once is no trickle of lines, and the trainer must not wait for a full pipe.
TRICKLE_BYTES = 1024


@dataclass(frozen=True)
class OutputTarget:
    """Where a trainer's output is printed, and the size at which output.log is rotated.

    The output of rank 0 is printed as it is; that of others, with ``shows_all_ranks``, by lines.
    Where it is no terminal, that of rank 0 is too: a rank writes a line in several pieces, between
    which the line of another one would come.
    """

    sink: Sink
    log_bytes: int
    shows_all_ranks: bool = False

    def of_rank(self, number: int) -> "OutputTarget":
        """Return where the output of a rank other than 0 is printed."""
        shown = PrefixedLines(self.sink, f"[rank {number}] ") if self.shows_all_ranks else Nowhere()
        return replace(self, sink=shown)

    def by_lines(self) -> "OutputTarget":
        """Return where the output of rank 0 is printed if that is no terminal."""
        return replace(self, sink=PrefixedLines(self.sink, "")) if self.shows_all_ranks else self


class Nowhere:
    """The sink of output that is kept and not printed."""

    def write(self, data: bytes) -> None:
        """Drop it."""

    def drain(self, timeout_seconds: float) -> None:
        """Return at once: nothing is queued."""


def open_output(log: Path, target: OutputTarget) -> "Output":
    """Return a terminal if the supervisor prints to one, else a pipe. Raises OSError."""
    if sys.stdout.isatty():
        with contextlib.suppress(OSError):
            return TerminalOutput(log, target, sys.stdout.fileno())
    return Output(log, target.by_lines(), os.pipe())


class Output:
    """A pipe that the trainer writes to, and a thread that copies from it."""

    def __init__(self, log: Path, target: OutputTarget, ends: tuple[int, int]) -> None:
        """Open the log; ``ends`` are the descriptors to read from and to write to."""
        self.read_descriptor, self.write_descriptor = ends
        """The trainer holds the first too, and gets the second as standard output and error."""
        self.heartbeat = Heartbeat()
        self.copied_bytes = 0
        """How much the trainer has written."""
        self._log = _Log(RotatingFile(log, target.log_bytes, real_parents=real_parents_of(log)))
        self._target = target.sink
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._copy, name="output", daemon=True)

    @property
    def lost_bytes(self) -> int:
        """How much of the output the disk has refused."""
        return self._log.lost_bytes

    def start(self) -> None:
        """Begin to copy; only after the trainer has got its descriptor."""
        os.close(self.write_descriptor)
        self._thread.start()

    def finish(self, timeout_seconds: float) -> None:
        """Copy until the last writer has closed its end, or the time is up, and close."""
        deadline = time.monotonic() + timeout_seconds
        self._ending.set()
        self._thread.join(timeout_seconds)
        self._target.drain(max(0.0, deadline - time.monotonic()))
        if not self._thread.is_alive():
            os.close(self.read_descriptor)
            self._log.close()

    def _copy(self) -> None:
        now = -math.inf
        # When the last writer has closed a terminal, Linux answers EIO.
        with contextlib.suppress(OSError):
            while data := os.read(self.read_descriptor, COPY_BYTES):
                self.heartbeat.beat()
                self.copied_bytes += len(data)
                self._log.write(data)
                self._target.write(data)
                self.heartbeat.pause()
                now, earlier = time.monotonic(), now
                if len(data) < TRICKLE_BYTES and now - earlier < 2 * PAUSE_SECONDS:
                    self._ending.wait(PAUSE_SECONDS)


class TerminalOutput(Output):
    """A pseudo-terminal instead of a pipe."""

    def __init__(self, log: Path, target: OutputTarget, terminal: int) -> None:
        super().__init__(log, target, pty.openpty())
        self._terminal = terminal
        attributes = termios.tcgetattr(self.write_descriptor)
        attributes[1] &= ~termios.OPOST  # the real terminal adds the carriage returns
        termios.tcsetattr(self.write_descriptor, termios.TCSANOW, attributes)
        self.resize()

    def resize(self) -> None:
        """Give the pseudo-terminal the size of the real one."""
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(self._terminal, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(self.read_descriptor, termios.TIOCSWINSZ, size)


class _Log:
    """output.log; what a full disk refuses is counted, and does not disturb the trainer."""

    def __init__(self, file: RotatingFile) -> None:
        self._file = file
        self.lost_bytes = 0
        self.write(b"")

    def write(self, data: bytes) -> None:
        try:
            data = data[self._file.write(data) :]
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            self.lost_bytes += len(data)

    def close(self) -> None:
        self._file.close()
