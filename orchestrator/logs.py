"""Logging for people on a terminal and for machines elsewhere; to standard error."""

import os
import sys
from typing import Any

import structlog


class _UnbreakableStream:
    """Standard error that nobody may be reading any more.

    A closed terminal or pipe must not end a supervisor that has a checkpoint to save.
    """

    def write(self, text: str) -> int:
        try:
            return sys.stderr.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            sys.stderr.flush()
        except (OSError, ValueError):
            # What is buffered for a dead terminal would raise again at exit.
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def configure() -> None:
    """Console lines on a terminal, one JSON object a line otherwise."""
    on_terminal = sys.stderr.isatty()
    renderer: Any = (
        structlog.dev.ConsoleRenderer(pad_event_to=0)
        if on_terminal
        else structlog.processors.JSONRenderer(default=str)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(
                fmt="%H:%M:%S" if on_terminal else "iso", utc=not on_terminal
            ),
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(_UnbreakableStream()),  # type: ignore[arg-type]
    )
