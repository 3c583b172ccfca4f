"""The journal of a run: journal.jsonl, append-only, with one event as JSON on each line."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.rundir.moments import Moment
from orchestrator.system.durable import append_lines
from orchestrator.system.json_input import parse_object
from orchestrator.system.regular_files import read_regular
from orchestrator.system.uptime import Uptime

MAXIMUM_BYTES = 1 << 30
# The first line of a journal may hold the history of the ones before it.
MAXIMUM_LINE_BYTES = 1 << 26
MAXIMUM_EVENT_BYTES = 1 << 22
# The types of what readers rely on; None stands for an absent value.
_TYPES: dict[str, type] = {
    **dict.fromkeys(("attempt", "step", "epoch", "status", "left_step", "left_epoch"), int),
    **dict.fromkeys(("total_steps", "total_epochs"), int),
    **dict.fromkeys(("loading_step", "loading_epoch", "resumed_step", "last_step"), int),
    **dict.fromkeys(("time", "path", "cause", "reason", "problem", "kind", "fingerprint"), str),
    "last_step_time": str,
    "last_lines": list,
}


class JournalEvent(StrEnum):
    """The names of the events (docs/reference/events.md)."""

    RUN_STARTED = "run_started"
    ATTEMPT_STARTED = "attempt_started"
    TRAINING_STARTED = "training_started"
    TRAINING_ENDED = "training_ended"
    RESUMED = "resumed"
    EXACTNESS_LOST = "exactness_lost"
    SNAPSHOT_TAKEN = "snapshot_taken"
    CHECKPOINT_PUBLISHED = "checkpoint_published"
    CHECKPOINT_FAILED = "checkpoint_failed"
    CHECKPOINT_QUARANTINED = "checkpoint_quarantined"
    CHECKPOINT_DELETED = "checkpoint_deleted"
    STOP_REQUESTED = "stop_requested"
    STOP_NOTICED = "stop_noticed"
    REPLICAS_DIFFER = "replicas_differ"
    HANG_DETECTED = "hang_detected"
    STALLED = "stalled"
    ATTEMPT_EXITED = "attempt_exited"
    RESTART_SCHEDULED = "restart_scheduled"
    GAVE_UP = "gave_up"
    RUN_STOPPED = "run_stopped"
    RUN_COMPLETED = "run_completed"
    REQUEUED = "requeued"
    JOURNAL_ROTATED = "journal_rotated"


_NAMES = frozenset(JournalEvent)


class Journal:
    """Appends events and reads them back.

    ``write`` never raises: a full disk must not stop the training, and checkpoints are found in the
    store, not in the journal. ``lost`` counts the events that could not be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        self._uptime = Uptime()
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        """Functions that are called with each event after it has been written."""

    def write(self, event: JournalEvent, attempt: int | None = None, **facts: Any) -> None:
        """Append one event with the current time in UTC, ISO 8601, and the uptime."""
        now = self.now()
        uptime = {"uptime_seconds": now.uptime}
        if now.asleep:
            uptime["asleep_seconds"] = now.asleep
        record = {"time": now.time, "event": event, "attempt": attempt, **uptime, **facts}
        line = json.dumps(record, default=str).encode() + b"\n"
        try:
            self.lost += not append_lines(self.path, line)
        except OSError:
            self.lost += 1
        for listener in self.listeners:
            listener(record)

    def now(self) -> Moment:
        """Return this moment, by the clocks of the events that are written here."""
        seconds, asleep = self._uptime.read()
        return Moment(utc_now(), round(seconds, 3), round(asleep, 3))

    def read(self) -> tuple[list[dict[str, Any]], int]:
        """Return all readable events, oldest first, and the number of damaged lines skipped.

        Raises ConfigError when the file cannot be read.
        """
        try:
            lines = read_regular(self.path, MAXIMUM_BYTES).splitlines()
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
    if len(line) > MAXIMUM_LINE_BYTES:
        return None
    try:
        event = checked_event(parse_object(line))
    except (ValueError, TypeError, KeyError):
        return None
    is_history = event["event"] == JournalEvent.JOURNAL_ROTATED
    return event if is_history or len(line) <= MAXIMUM_EVENT_BYTES else None


def checked_event(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event if what readers rely on has the right types.

    Raises ValueError, TypeError or KeyError otherwise.
    """
    if event["event"] not in _NAMES:
        raise ValueError("it is no event of this program")
    for key, value in event.items():
        if value is not None and not isinstance(value, _TYPES.get(key, object)):
            raise ValueError(f"{key} has the wrong type")
    if not all(isinstance(line, str) for line in event.get("last_lines") or ()):
        raise ValueError("last_lines has a part of the wrong type")
    return event


def utc_now() -> str:
    """Return the current time as the journal and the manifests write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
