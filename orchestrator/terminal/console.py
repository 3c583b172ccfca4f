"""The supervisor's output: the trainer's output on stdout, its own messages on stderr."""

import contextlib
import os
import sys
from typing import Protocol

from orchestrator.system.text import shown_line
from orchestrator.terminal.lossy_writer import LossyWriter
from orchestrator.terminal.screen import READER_PATIENCE_SECONDS, Screen

# A script prints a line in several pieces; a message may come before the line or after it.
LINE_SECONDS = 0.2


class Sink(Protocol):
    """A destination for the trainer's output that never waits for its reader."""

    def write(self, data: bytes) -> None:
        """Queue ``data`` for writing, or drop it."""

    def drain(self, timeout_seconds: float) -> None:
        """Wait until all queued data has been written or the timeout has passed."""


class Console:
    """Standard output and standard error; if both are one terminal, they share a screen."""

    def __init__(self) -> None:
        error, output = sys.stderr.fileno(), sys.stdout.fileno()
        self.is_interactive = sys.stdin.isatty() or sys.stderr.isatty()
        self.screen = Screen(error) if sys.stderr.isatty() else None
        """Standard error, if it is a terminal."""
        self.output: Sink
        """Standard output."""
        if self.screen is not None and _is_same_terminal(output, error):
            self.output = self.screen
        else:
            shared = os.path.sameopenfile(output, error)
            self.output = LossyWriter(
                output, READER_PATIENCE_SECONDS, line_seconds=LINE_SECONDS if shared else 0.0
            )

    def set_footer(self, text: str) -> None:
        """Show ``text`` below all output of the terminal, if there is one; '' removes it."""
        if self.screen is not None:
            self.screen.set_footer(shown_line(text))


def _is_same_terminal(first: int, second: int) -> bool:
    with contextlib.suppress(OSError):
        return os.isatty(first) and os.fstat(first).st_rdev == os.fstat(second).st_rdev
    return False
