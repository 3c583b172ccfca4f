"""Logging for people on a terminal and for machines elsewhere; to standard error."""

import sys
from typing import Any

import structlog

from orchestrator.outlet import Outlet

LAST_LINES_SECONDS = 1.0


class Log:
    """The program's log; nobody may be reading it, which must not hold up a supervisor."""

    def __init__(self) -> None:
        """Console lines on a terminal, one JSON object a line otherwise."""
        self._outlet = Outlet(sys.stderr.fileno())
        on_terminal = sys.stderr.isatty()
        renderer: Any = (
            _Paragraphs() if on_terminal else structlog.processors.JSONRenderer(default=str)
        )
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(
                    fmt="%H:%M:%S" if on_terminal else "iso", utc=not on_terminal
                ),
                renderer,
            ],
            logger_factory=structlog.WriteLoggerFactory(self),  # type: ignore[arg-type]
        )

    def write(self, text: str) -> None:
        """Called by structlog with each line."""
        self._outlet.write(text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Called by structlog after each line."""

    def close(self) -> None:
        """Wait a moment for the last lines to go out."""
        self._outlet.close(LAST_LINES_SECONDS)


class _Paragraphs:
    """A line an event; one with ``details``, a list of lines, has these below it.

    Its other facts, which the details put into words, are then left to the machines.
    """

    def __init__(self) -> None:
        self._render_line = structlog.dev.ConsoleRenderer(pad_event_to=0)

    def __call__(self, logger: Any, method: str, event: dict[str, Any]) -> str:
        if "details" not in event:
            return str(self._render_line(logger, method, event))
        head = {key: event[key] for key in ("event", "level", "timestamp")}
        lines = [f"    {line}" for line in event["details"]]
        return "\n".join([str(self._render_line(logger, method, head)), *lines])
