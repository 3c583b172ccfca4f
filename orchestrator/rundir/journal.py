"""journal.jsonl: what happened in a run, one JSON object a line, append-only."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.system.durable import append_lines


class JournalEvent(StrEnum):
    """The events of docs/reference/events.md."""

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

    Writing never fails the caller: a full disk must not stop training, and the store, not the
    journal, is the truth about checkpoints. What could not be written is counted in ``lost``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        """Called with each event after it was written."""

    def write(self, event: JournalEvent, attempt: int | None = None, **facts: Any) -> None:
        """Append one event with the time, UTC in ISO 8601."""
        record = {"time": utc_now(), "event": event, "attempt": attempt, **facts}
        line = json.dumps(record, default=str).encode() + b"\n"
        try:
            self.lost += not append_lines(self.path, line)
        except OSError:
            self.lost += 1
        for hear in self.listeners:
            hear(record)

    def read(self) -> tuple[list[dict[str, Any]], int]:
        """All readable events, oldest first, and the number of damaged lines that were skipped.

        Raises ConfigError when the file cannot be read.
        """
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            raise ConfigError(
                f"cannot read {self.path}: {error.strerror}; mend that, or move it away: the run "
                "then goes on without its history"
            ) from None
        events, damaged = [], 0
        for line in filter(None, lines):
            try:
                record = json.loads(line)
                JournalEvent(record["event"])
            except (ValueError, TypeError, KeyError, RecursionError):
                damaged += 1
                continue
            events.append(record)
        return events, damaged


def utc_now() -> str:
    """The time as the journal and manifests write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
