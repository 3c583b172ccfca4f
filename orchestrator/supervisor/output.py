"""The trainer's output: all of it into output.log, and on to where the supervisor prints.

On a terminal the trainer gets a pseudo-terminal of the same size, so that progress bars look as
they do without us. Elsewhere it writes into the file itself and the supervisor copies from there:
with a pipe, the supervisor's death would end the trainer through EPIPE.
"""

import contextlib
import fcntl
import os
import pty
import sys
import termios
import threading
from pathlib import Path
from typing import Protocol

COPY_BYTES = 1 << 16
POLL_SECONDS = 0.1


class Output(Protocol):
    """Where the trainer writes to, and the thread that copies it."""

    descriptor: int
    """Becomes the trainer's standard output and standard error."""
    keeper: int | None
    """To be held by the trainer too: keeps the pseudo-terminal alive after our death."""

    def start(self) -> None:
        """Begin to copy; call it once the trainer has its descriptor."""

    def finish(self, timeout_seconds: float) -> None:
        """Copy what is left, at most so long, and close."""


def open_output(log: Path) -> Output:
    """The kind of output that suits where the supervisor's own goes. Raises OSError."""
    if sys.stdout.isatty():
        with contextlib.suppress(OSError):
            return TerminalOutput(log, sys.stdout.fileno())
    return FileOutput(log, sys.stdout.fileno())


class FileOutput:
    """The trainer writes into the log; a thread copies what the log gains."""

    keeper: int | None = None

    def __init__(self, log: Path, target: int) -> None:
        self.descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._source = open(log, "rb", buffering=0)  # noqa: SIM115
        self._target = _Target(target)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._copy, name="output", daemon=True)

    def start(self) -> None:
        """Begin to copy."""
        os.close(self.descriptor)
        self._thread.start()

    def finish(self, timeout_seconds: float) -> None:
        """Copy what is left and close."""
        self._ended.set()
        self._thread.join(timeout_seconds)

    def _copy(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self._copy_what_is_there()
        self._copy_what_is_there()
        self._source.close()

    def _copy_what_is_there(self) -> None:
        while data := self._source.read(COPY_BYTES):
            self._target.write(data)


class TerminalOutput:
    """The trainer writes to a pseudo-terminal; a thread copies to the log and the terminal."""

    def __init__(self, log: Path, terminal: int) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._terminal = terminal
        self._target = _Target(terminal)
        self._master, self.descriptor = pty.openpty()
        self.keeper: int | None = self._master
        attributes = termios.tcgetattr(self.descriptor)
        attributes[1] &= ~termios.OPOST  # the real terminal adds carriage returns, once is enough
        termios.tcsetattr(self.descriptor, termios.TCSANOW, attributes)
        self.resize()
        self._thread = threading.Thread(target=self._copy, name="output", daemon=True)

    def start(self) -> None:
        """Begin to copy."""
        os.close(self.descriptor)
        self._thread.start()

    def resize(self) -> None:
        """Give the pseudo-terminal the size of the real one."""
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(self._terminal, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def finish(self, timeout_seconds: float) -> None:
        """Copy until the last process that holds the pseudo-terminal has let go, and close."""
        self._thread.join(timeout_seconds)
        if not self._thread.is_alive():
            os.close(self._master)
            os.close(self._log)

    def _copy(self) -> None:
        # At the end of the last writer, Linux answers EIO and other systems an empty read.
        with contextlib.suppress(OSError):
            while data := os.read(self._master, COPY_BYTES):
                _write_all(self._log, data)
                self._target.write(data)


class _Target:
    """Our own standard output, which may go away while the trainer lives on."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def write(self, data: bytes) -> None:
        if self._descriptor is None:
            return
        try:
            _write_all(self._descriptor, data)
        except OSError:
            self._descriptor = None


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
