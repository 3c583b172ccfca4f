"""The program's log: text for people or JSON for programs on standard error, JSON in a file."""

import contextlib
import json
import os
import sys
from collections.abc import Mapping, MutableMapping
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from orchestrator.system.json_input import parse_object
from orchestrator.system.text import shown, shown_line
from orchestrator.terminal.lossy_writer import LossyWriter
from orchestrator.terminal.rotating_file import RotatingFile
from orchestrator.terminal.screen import Screen

LAST_LINES_SECONDS = 1.0


def is_journal(descriptor: int, environment: Mapping[str, str]) -> bool:
    """Return whether a descriptor leads to the systemd journal, as ``JOURNAL_STREAM`` says."""
    status = os.fstat(descriptor)
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class Log:
    """The program's log. A reader that has stopped reading does not hold up the supervisor."""

    def __init__(self, screen: Screen | None, *, in_json: bool = False) -> None:
        """Write to ``screen``, the terminal, or to standard error where that is no terminal.

        The text has colours on a terminal, and the date elsewhere. With ``in_json`` each event is
        one JSON object on one line.
        """
        self._screen = screen
        self._writer = None if screen else LossyWriter(sys.stderr.fileno())
        self._record = _Record()
        render: Any = structlog.processors.JSONRenderer(default=str)
        if not in_json:
            render = _Paragraphs(is_coloured=screen is not None, with_date=screen is None)
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                self._record,
                render,
            ],
            logger_factory=structlog.WriteLoggerFactory(self),  # type: ignore[arg-type]
        )

    def record_in(self, path: Path, limit_bytes: int) -> None:
        """Also write the log to a file from now on, rotated at a size; `attach` reads it."""
        self._record.file = RotatingFile(path, limit_bytes)
        if self._writer is not None and _is_standard_error(path):
            self._writer.close(LAST_LINES_SECONDS)
            self._writer = None

    def write(self, text: str) -> None:
        """Print one line; structlog calls this."""
        if self._screen is not None:
            self._screen.print_message(text)
        elif self._writer is not None:
            self._writer.write(text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Do nothing; structlog calls this after each line."""

    def close(self) -> None:
        """Print the last lines, for at most a second, and stop."""
        sink = self._screen or self._writer
        if sink is not None:
            sink.close(LAST_LINES_SECONDS)


class _Record:
    """Appends each event to a file, as JSON."""

    def __init__(self) -> None:
        self.file: RotatingFile | None = None

    def __call__(
        self, logger: Any, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        # A full disk loses these lines and must not end the run.
        with contextlib.suppress(OSError):
            if self.file is not None:
                self.file.write(json.dumps(event, default=str).encode() + b"\n")
                # A file that was moved away is made again.
                self.file.close()
        return event


def _is_standard_error(path: Path) -> bool:
    return os.path.exists(path) and os.path.samestat(path.stat(), os.fstat(sys.stderr.fileno()))


class _Paragraphs:
    """Renders events as text: one line an event, and below it the lines of its ``details``.

    The details put the event's other facts into words, so these are then left out.
    """

    def __init__(self, *, is_coloured: bool, with_date: bool) -> None:
        self._time_format = "%Y-%m-%d %H:%M:%S" if with_date else "%H:%M:%S"
        # By position, since the first parameter has another name in older versions of structlog.
        self._render_line = structlog.dev.ConsoleRenderer(0, colors=is_coloured)

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        """Return the text of an event whose timestamp is in UTC, ISO 8601."""
        local_time = datetime.fromisoformat(event["timestamp"]).astimezone()
        harmless = {shown_line(key): _harmless(value) for key, value in event.items()}
        harmless["timestamp"] = local_time.strftime(self._time_format)
        if "details" not in event:
            return str(self._render_line(logger, method, harmless))
        head = {key: harmless[key] for key in ("event", "level", "timestamp")}
        lines = [f"    {shown(line)}" for line in event["details"]]
        return "\n".join([str(self._render_line(logger, method, head)), *lines])


def _harmless(value: Any) -> Any:
    """Return a value as a terminal may be sent it; numbers stay what they are."""
    return value if isinstance(value, int | float | None) else shown(value)


def text_of(line: str, *, on_terminal: bool) -> str:
    """Return a line of the log's JSON as text for people; any other line as ``shown`` has it."""
    try:
        event = parse_object(line)
        render = _Paragraphs(is_coloured=on_terminal, with_date=not on_terminal)
        return render(None, event["level"], event)
    except (ValueError, OverflowError, TypeError, KeyError):
        return shown(line)
