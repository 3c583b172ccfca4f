"""Where the supervisor prints: the trainer's output on standard output, its own words on error."""

import contextlib
import os
import sys
from typing import Protocol

from orchestrator.terminal.lossy_writer import LossyWriter
from orchestrator.terminal.screen import READER_PATIENCE_SECONDS, Screen


class Sink(Protocol):
    """What takes the trainer's output, and does not wait for whoever reads it."""

    def write(self, data: bytes) -> None:
        """Have it written, or dropped."""

    def drain(self, timeout_seconds: float) -> None:
        """Wait at most so long until what was written before has gone out."""


class Console:
    """The two streams; where both are one terminal they share a screen."""

    def __init__(self) -> None:
        error, output = sys.stderr.fileno(), sys.stdout.fileno()
        self.is_interactive = sys.stdin.isatty() or sys.stderr.isatty()
        self.screen = Screen(error) if sys.stderr.isatty() else None
        """Standard error, where that is a terminal."""
        self.output: Sink
        """Standard output."""
        if self.screen is not None and _is_same_terminal(output, error):
            self.output = self.screen
        else:
            self.output = LossyWriter(output, READER_PATIENCE_SECONDS)

    def show_below(self, text: str) -> None:
        """Keep a line below everything on the terminal, if there is one; none for an empty text."""
        if self.screen is not None:
            self.screen.show_below(text)


def _is_same_terminal(one: int, other: int) -> bool:
    with contextlib.suppress(OSError):
        return os.isatty(one) and os.fstat(one).st_rdev == os.fstat(other).st_rdev
    return False
