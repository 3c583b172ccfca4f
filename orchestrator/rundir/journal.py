"""The journal of a run: journal.jsonl, append-only, with one event as JSON on each line."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.system.durable import append_lines


class JournalEvent(StrEnum):
    """The names of the events (docs/reference/events.md)."""

    RUN_STARTED = "run_started"
    ATTEMPT_STARTED = "attempt_started"
    RESUMED = "resumed"
    EXACTNESS_LOST = "exactness_lost"
    SNAPSHOT_TAKEN = "snapshot_taken"
    CHECKPOINT_PUBLISHED = "checkpoint_published"
    CHECKPOINT_FAILED = "checkpoint_failed"
    CHECKPOINT_QUARANTINED = "checkpoint_quarantined"
    CHECKPOINT_DELETED = "checkpoint_deleted"
    STOP_REQUESTED = "stop_requested"
    STOP_NOTICED = "stop_noticed"
    HANG_DETECTED = "hang_detected"
    ATTEMPT_EXITED = "attempt_exited"
    RESTART_SCHEDULED = "restart_scheduled"
    GAVE_UP = "gave_up"
    RUN_STOPPED = "run_stopped"
    RUN_COMPLETED = "run_completed"
    REQUEUED = "requeued"


class Journal:
    """Appends events and reads them back.

    ``write`` never raises: a full disk must not stop the training, and checkpoints are found in the
    store, not in the journal. ``lost`` counts the events that could not be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        """Functions that are called with each event after it has been written."""

    def write(self, event: JournalEvent, attempt: int | None = None, **facts: Any) -> None:
        """Append one event with the current time in UTC, ISO 8601."""
        record = {"time": utc_now(), "event": event, "attempt": attempt, **facts}
        line = json.dumps(record, default=str).encode() + b"\n"
        try:
            self.lost += not append_lines(self.path, line)
        except OSError:
            self.lost += 1
        for listener in self.listeners:
            listener(record)

    def read(self) -> tuple[list[dict[str, Any]], int]:
        """Return all readable events, oldest first, and the number of damaged lines skipped.

        Raises ConfigError when the file cannot be read.
        """
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            raise ConfigError(
                f"cannot read {self.path}: {error.strerror}; fix this, or move the file away: the "
                "run then continues without its history"
            ) from None
        events, damaged = [], 0
        for line in filter(None, lines):
            if (event := parse_event(line)) is None:
                damaged += 1
            else:
                events.append(event)
        return events, damaged


def parse_event(line: bytes) -> dict[str, Any] | None:
    """Return the event on a line of the journal; None for a damaged line."""
    try:
        event: dict[str, Any] = json.loads(line)
        JournalEvent(event["event"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return event


def utc_now() -> str:
    """Return the current time as the journal and the manifests write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
