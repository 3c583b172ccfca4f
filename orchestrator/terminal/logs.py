"""Logging for people on a terminal and for machines elsewhere; to standard error and to a file."""

import contextlib
import json
import os
import sys
from collections.abc import MutableMapping
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from orchestrator.system.durable import append_lines
from orchestrator.system.json_input import parse_object
from orchestrator.terminal.lossy_writer import LossyWriter
from orchestrator.terminal.screen import Screen

LAST_LINES_SECONDS = 1.0


class Log:
    """The program's log; nobody may be reading it, which must not hold up a supervisor."""

    def __init__(self, screen: Screen | None) -> None:
        """Console lines on a terminal, which ``screen`` is, one JSON object a line otherwise."""
        self._screen = screen
        self._outlet = None if screen else LossyWriter(sys.stderr.fileno())
        self._record = _Record()
        in_json = structlog.processors.JSONRenderer(default=str)
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                self._record,
                _Paragraphs(is_coloured=True) if screen else in_json,
            ],
            logger_factory=structlog.WriteLoggerFactory(self),  # type: ignore[arg-type]
        )

    def record_in(self, path: Path) -> None:
        """Also write the log to a file from now on; `orchestrator attach` reads it."""
        self._record.path = path
        if self._outlet is not None and _is_standard_error(path):
            self._outlet.close(LAST_LINES_SECONDS)
            self._outlet = None

    def write(self, text: str) -> None:
        """Print one line; structlog calls this."""
        if self._screen is not None:
            self._screen.print_message(text)
        elif self._outlet is not None:
            self._outlet.write(text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Do nothing; structlog calls this after each line."""

    def close(self) -> None:
        """Print the last lines, for at most a second, and stop."""
        sink = self._screen or self._outlet
        if sink is not None:
            sink.close(LAST_LINES_SECONDS)


class _Record:
    """Appends each event to a file, as JSON."""

    def __init__(self) -> None:
        self.path: Path | None = None

    def __call__(
        self, logger: Any, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        # A full disk loses these lines and must not end the run.
        with contextlib.suppress(OSError):
            if self.path is not None:
                line = json.dumps(event, default=str)
                append_lines(self.path, line.encode() + b"\n")
        return event


def _is_standard_error(path: Path) -> bool:
    return path.exists() and os.path.samestat(path.stat(), os.fstat(sys.stderr.fileno()))


class _Paragraphs:
    """For people: a line an event; one with ``details``, a list of lines, has these below it.

    Its other facts, which the details put into words, are then left to the machines.
    """

    def __init__(self, is_coloured: bool) -> None:
        self._render_line = structlog.dev.ConsoleRenderer(colors=is_coloured, pad_event_to=0)

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        """The text of an event whose timestamp is in UTC, ISO 8601."""
        shown = {**event, "timestamp": _local_time(event["timestamp"])}
        if "details" not in event:
            return str(self._render_line(logger, method, shown))
        head = {key: shown[key] for key in ("event", "level", "timestamp")}
        lines = [f"    {line}" for line in event["details"]]
        return "\n".join([str(self._render_line(logger, method, head)), *lines])


def readable(line: str, is_coloured: bool) -> str:
    """A line of the log's JSON for people; any other line as it is."""
    try:
        event = parse_object(line)
        return _Paragraphs(is_coloured)(None, event["level"], event)
    except (ValueError, TypeError, KeyError):
        return line


def _local_time(stamp: str) -> str:
    return datetime.fromisoformat(stamp).astimezone().strftime("%H:%M:%S")
