"""What the journal tells about the past of a run, read without reading all of it again.

The history is a summary whose size does not grow with the journal. It is kept in an index beside
the journal, which may be deleted at any time: it says how far it has read, and is used only if the
journal begins and ends there as it did then. Only the events after that are read.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO, TypeGuard

from orchestrator.errors import ConfigError
from orchestrator.rundir.journal import (
    MAXIMUM_BYTES,
    MAXIMUM_LINE_BYTES,
    JournalEvent,
    checked_event,
    parse_event,
    utc_now,
)
from orchestrator.rundir.paths import RunDir
from orchestrator.system.durable import replace_disposable_file, replace_file
from orchestrator.system.json_input import parse_object
from orchestrator.system.regular_files import open_regular, read_regular

FORMAT_VERSION = 1
# The index is written again when this much was read after it: some hundred events.
INDEX_EVERY_BYTES = 1 << 16
# A supervisor that is killed leaves at most this many events that the index lacks.
INDEX_EVERY_EVENTS = 300
EDGE_BYTES = 4096
RECENT_SAVES = 20
LONGEST_SAVE_SECONDS = 1e9
RECENT_ENDS = 200
# A budget that allows more failures without progress than this counts too few of them.
MOST_FAILURES = 1000
ENDS = (JournalEvent.RUN_COMPLETED, JournalEvent.RUN_STOPPED, JournalEvent.GAVE_UP)
_MARKS = (*ENDS, JournalEvent.RUN_STARTED, JournalEvent.ATTEMPT_STARTED)
_SAVES = (JournalEvent.CHECKPOINT_PUBLISHED, JournalEvent.CHECKPOINT_FAILED)
_BULKY = ("last_lines", "stack", "command")
_HISTORY_TYPES: dict[str, type | UnionType] = {
    **dict.fromkeys(("damaged", "restarts", "has_attempts", "attempts_since_give_up"), int),
    "attempt": int | None,
    "begun": str | None,
    **dict.fromkeys(("last_mark", "last_save", "last_stop", "last_give_up", "last_exit"), dict),
    **dict.fromkeys(("save_seconds", "furthest", "since_progress"), list),
    **dict.fromkeys(("published", "ends"), dict),
}


@dataclass
class History:
    """The past of a run.

    The events that are kept are the journal's own. None and empty values stand for what has not
    happened.
    """

    damaged: int = 0
    """The number of lines that could not be read."""
    attempt: int | None = None
    """The highest number of an attempt."""
    has_attempts: bool = False
    """Whether a supervisor has started an attempt."""
    attempts_since_give_up: int = 0
    """The attempts since the run began, or since it last gave up."""
    begun: str | None = None
    """When the first of these began."""
    restarts: int = 0
    last_mark: dict[str, Any] = field(default_factory=dict)
    """The newest event that begins or ends a run or an attempt's life."""
    last_save: dict[str, Any] = field(default_factory=dict)
    """The newest save that was published or has failed."""
    last_stop: dict[str, Any] = field(default_factory=dict)
    last_give_up: dict[str, Any] = field(default_factory=dict)
    last_exit: dict[str, Any] = field(default_factory=dict)
    save_seconds: list[float] = field(default_factory=list)
    """How long the newest saves took, the newest last."""
    published: dict[str, None] = field(default_factory=dict)
    """The names of the checkpoints that were published and not deleted by the program since."""
    furthest: list[int] = field(default_factory=lambda: [-1, 0])
    """The furthest step and epoch of a healthy checkpoint."""
    since_progress: list[dict[str, Any]] = field(default_factory=list)
    """The events that the failure budget depends on, of about MOST_FAILURES attempts at most."""
    ends: dict[str, int] = field(default_factory=dict)
    """How often attempts ended in each way, for the ways that were seen last."""

    def add(self, event: dict[str, Any]) -> None:
        """Add the next event of the journal."""
        name = event["event"]
        if name == JournalEvent.JOURNAL_ROTATED:
            self._go_on_from(event)
            return
        number = event.get("attempt")
        if isinstance(number, int):
            self.attempt = max(self.attempt or 0, number)
        if name in _MARKS:
            self.last_mark = event
        if name in _SAVES:
            self.last_save = event
        match name:
            case JournalEvent.ATTEMPT_STARTED:
                self.has_attempts = True
                self.attempts_since_give_up += 1
                self.begun = self.begun or str(event.get("time"))
                self.since_progress.append(_slim(event))
            case JournalEvent.RESTART_SCHEDULED:
                self.restarts += 1
            case JournalEvent.CHECKPOINT_PUBLISHED:
                self._add_publication(event)
            case JournalEvent.CHECKPOINT_DELETED:
                self.published.pop(_name(event), None)
            case JournalEvent.CHECKPOINT_QUARANTINED if event.get("demoted"):
                self.since_progress.append(event)
            case JournalEvent.ATTEMPT_EXITED:
                self._add_exit(event)
            case JournalEvent.RUN_STOPPED:
                self.last_stop = event
            case JournalEvent.GAVE_UP:
                self.last_give_up = event
                self.attempts_since_give_up, self.begun = 0, None
                self._forget_failures()
                self.since_progress.append(_slim(event))
        if len(self.since_progress) > 4 * MOST_FAILURES:
            newest = self.since_progress[-2 * MOST_FAILURES :]
            del self.since_progress[-2 * MOST_FAILURES :]
            self._forget_failures()
            self.since_progress += newest

    def _go_on_from(self, event: dict[str, Any]) -> None:
        """Take over the history of the journals before this one, if it is intact."""
        try:
            carried = event["history"]
            if event["check"] != _digest_of(carried).hexdigest():
                raise ValueError("the history is damaged")
            vars(self).update(vars(_checked_history(carried)))
        except (ValueError, TypeError, KeyError, RecursionError):  # also another version's
            self.damaged += 1

    def times_ended_like(self, event: dict[str, Any]) -> int:
        """Return how many attempts ended with the same defect at the same step as this one."""
        return self.ends.get(_way_of(event), 0)

    def _add_publication(self, event: dict[str, Any]) -> None:
        self.published[_name(event)] = None
        seconds = event.get("seconds")
        if _is_duration(seconds):
            self.save_seconds = [*self.save_seconds, seconds][-RECENT_SAVES:]
        if (position := _published(event)) is not None:
            self._add_progress(event, position)

    def _add_exit(self, event: dict[str, Any]) -> None:
        self.last_exit = event
        way = _way_of(event)
        self.ends[way] = self.ends.pop(way, 0) + 1
        if len(self.ends) > RECENT_ENDS:
            del self.ends[next(iter(self.ends))]
        position = _left(event)
        if position is None or not self._add_progress(event, position):
            self.since_progress.append(_slim(event))

    def _add_progress(self, event: dict[str, Any], position: list[int]) -> bool:
        """Drop what progress makes irrelevant; return whether the position is further than all."""
        if position <= self.furthest:
            return False
        self.furthest = position
        step, _ = position
        running = self._running_attempt()
        kept: list[dict[str, Any]] = []
        for earlier in self.since_progress:
            if earlier["event"] == JournalEvent.GAVE_UP:
                kept = [start for start in kept if start is running]
            # A failure further on is not passed yet.
            elif earlier is running or (
                earlier["event"] == JournalEvent.ATTEMPT_EXITED and _count(earlier, "step") >= step
            ):
                kept.append(earlier)
        self.since_progress = kept
        self.since_progress.append(_slim(event))
        return True

    def _forget_failures(self) -> None:
        """Keep only what still counts when the failures so far do not."""
        events = self.since_progress
        exits = [e for e in events if e["event"] == JournalEvent.ATTEMPT_EXITED]
        # The newest of each: whether an attempt runs, and what was demoted.
        kept = [
            *[e for e in events if e["event"] == JournalEvent.ATTEMPT_STARTED][-1:],
            *[e for e in events if e["event"] == JournalEvent.CHECKPOINT_QUARANTINED][-1:],
            *exits[-1:],
            *[e for e in exits if e.get("reached_safe_point")][:1],
            *[e for e in events if self.furthest in (_left(e), _published(e))][:1],
        ]
        self.since_progress = [e for e in events if any(e is other for other in kept)]

    def _running_attempt(self) -> dict[str, Any] | None:
        """Return the start of the attempt that has not ended."""
        event: dict[str, Any]
        for event in reversed(self.since_progress):
            if event["event"] == JournalEvent.ATTEMPT_EXITED:
                return None
            if event["event"] == JournalEvent.ATTEMPT_STARTED:
                return event
        return None


def _is_duration(seconds: object) -> TypeGuard[float]:
    return isinstance(seconds, int | float) and 0 <= seconds < LONGEST_SAVE_SECONDS


def _name(event: dict[str, Any]) -> str:
    return os.path.basename(str(event.get("path")))


def _count(event: dict[str, Any], key: str) -> int:
    value = event.get(key)
    return value if isinstance(value, int) else 0


def _published(event: dict[str, Any]) -> list[int] | None:
    """Return the step and epoch of a healthy checkpoint that was published."""
    if event["event"] != JournalEvent.CHECKPOINT_PUBLISHED or not event.get("healthy", True):
        return None
    return [_count(event, "step"), _count(event, "epoch")]


def _left(event: dict[str, Any]) -> list[int] | None:
    """Return the step and epoch of the snapshot that an attempt has left at its end."""
    if event["event"] != JournalEvent.ATTEMPT_EXITED or event.get("left_step") is None:
        return None
    return [_count(event, "left_step"), _count(event, "left_epoch")]


def _way_of(event: dict[str, Any]) -> str:
    """Return what two ends have in common that come from one defect."""
    return json.dumps([event.get("kind"), event.get("fingerprint"), event.get("step")])


def _slim(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in _BULKY}


def history_of(events: Iterable[dict[str, Any]]) -> History:
    """Return the history of these events, oldest first."""
    history = History()
    for event in events:
        history.add(event)
    return history


def read_history(run: RunDir) -> History:
    """Return the history of a run, and bring the index up to date where much was read.

    Raises ConfigError when the journal cannot be read.
    """
    try:
        with open(open_regular(run.journal_file, os.O_RDONLY), "rb") as journal:
            return _read(run, journal)
    except FileNotFoundError:
        return History()
    except OSError as error:
        raise ConfigError(
            f"cannot read {run.journal_file}: {error.strerror}; fix this, or move the file away: "
            "the run then continues without its history"
        ) from None


def rotate_journal(run: RunDir, limit_bytes: int) -> None:
    """Continue a journal that exceeds the limit in a new file, which begins with its history.

    The earlier ones stay, as journal.1.jsonl and so on. Call it only under the run lock, before
    anything is written. Raises ConfigError when the journal cannot be read.
    """
    # A journal that cannot be rotated just grows.
    with contextlib.suppress(OSError, RecursionError):
        if run.journal_file.stat().st_size <= limit_bytes:
            return
        history = asdict(read_history(run))
        earlier = _unused_path(run.journal_file)
        event = {
            "time": utc_now(),
            "event": JournalEvent.JOURNAL_ROTATED,
            "attempt": None,
            "previous": earlier.name,
            "history": history,
            "check": _digest_of(history).hexdigest(),
        }
        line = json.dumps(event).encode() + b"\n"
        if len(line) > MAXIMUM_LINE_BYTES:
            return
        # Linked first: at every moment there is a journal with the whole history.
        os.link(run.journal_file, earlier)
        replace_file(run.journal_file, line)


def _unused_path(path: Path) -> Path:
    numbers = itertools.count(1)
    paths = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in numbers)
    return next(candidate for candidate in paths if not os.path.lexists(candidate))


class HistoryIndexer:
    """Keeps the index close behind a journal that this process writes."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._events = 0

    def on_event(self, event: dict[str, Any]) -> None:
        """Count an event that was written; a listener of the journal."""
        self._events += 1
        if self._events >= INDEX_EVERY_EVENTS:
            self._events = 0
            with contextlib.suppress(ConfigError):
                read_history(self._run)


def _read(run: RunDir, journal: BinaryIO) -> History:
    history, offset = _indexed(run.journal_index_file, journal)
    if os.fstat(journal.fileno()).st_size - offset > MAXIMUM_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MAXIMUM_BYTES} bytes")
    journal.seek(offset)
    begin, rest = offset, b""
    # Of a line that is too long each piece counts as damaged.
    while line := journal.readline(MAXIMUM_LINE_BYTES):
        if not line.endswith(b"\n") and len(line) < MAXIMUM_LINE_BYTES:
            rest = line
            break
        offset += len(line)
        _add_line(history, line)
    if offset - begin >= INDEX_EVERY_BYTES:
        _write_index(run.journal_index_file, journal, history, offset)
    # The line may be torn, or not written completely yet: it is no part of the index.
    _add_line(history, rest)
    return history


def _add_line(history: History, line: bytes) -> None:
    if line.strip():
        event = parse_event(line)
        if event is None:
            history.damaged += 1
        else:
            history.add(event)


def _indexed(index: Path, journal: BinaryIO) -> tuple[History, int]:
    """Return the history in the index and where it ends; an empty one without a valid index."""
    try:
        content = parse_object(read_regular(index, MAXIMUM_LINE_BYTES))
        offset = content["offset"]
        if (
            content["format_version"] == FORMAT_VERSION
            and isinstance(offset, int)
            and 0 <= offset <= os.fstat(journal.fileno()).st_size
            and content["check"] == _check(journal, offset, content["history"])
        ):
            return _checked_history(content["history"]), offset
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass  # it is missing, damaged or another version's
    return History(), 0


def _checked_history(content: dict[str, Any]) -> History:
    """Return the history of an index or of the journal before this one.

    Raises ValueError, TypeError or KeyError for wrong types.
    """
    history = History(**content)
    for name, kind in _HISTORY_TYPES.items():
        if not isinstance(content.get(name), kind):
            raise ValueError(f"{name} has the wrong type")
    marks = (history.last_mark, history.last_save, history.last_stop)
    ends = (history.last_give_up, history.last_exit)
    for event in (*history.since_progress, *filter(None, (*marks, *ends))):
        checked_event(event)
    step, epoch = history.furthest
    if not (
        all(isinstance(count, int) for count in (step, epoch, *history.ends.values()))
        and all(map(_is_duration, history.save_seconds))
    ):
        raise ValueError("a number has the wrong type")
    return history


def _write_index(index: Path, journal: BinaryIO, history: History, offset: int) -> None:
    # Without the index the journal is read again: a read-only directory costs only time, and so
    # does an event that is nested too deeply to be copied.
    with contextlib.suppress(OSError, RecursionError):
        content = {
            "format_version": FORMAT_VERSION,
            "offset": offset,
            "check": _check(journal, offset, asdict(history)),
            "history": asdict(history),
        }
        replace_disposable_file(index, json.dumps(content).encode())


def _digest_of(history: dict[str, Any]) -> "hashlib.blake2b":
    return hashlib.blake2b(json.dumps(history).encode(), digest_size=16)


def _check(journal: BinaryIO, offset: int, history: dict[str, Any]) -> str:
    """Return a digest of the history and of both ends of the journal that it was read from."""
    digest = _digest_of(history)
    for position in (0, max(0, offset - EDGE_BYTES)):
        journal.seek(position)
        digest.update(journal.read(min(EDGE_BYTES, offset - position)))
    return digest.hexdigest()
