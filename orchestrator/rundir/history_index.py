"""Reads the history of a run without reading all of its journal again.

The history is kept in an index beside the journal, which may be deleted at any time: it says how
far it has read, and is used only if the journal begins and ends there as it did then. Only the
events after that are read.
"""

import contextlib
import errno
import itertools
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.errors import ConfigError
from orchestrator.rundir.history import History, checked_history, digest_of
from orchestrator.rundir.journal import (
    MAXIMUM_BYTES,
    MAXIMUM_LINE_BYTES,
    JournalEvent,
    parse_event,
    utc_now,
)
from orchestrator.rundir.paths import RunDir
from orchestrator.system.durable import replace_disposable_file, replace_file
from orchestrator.system.json_input import parse_object
from orchestrator.system.regular_files import open_regular, read_regular

FORMAT_VERSION = 2
# The index is written again when this much was read after it: some hundred events.
INDEX_EVERY_BYTES = 1 << 16
# A supervisor that is killed leaves at most this many events that the index lacks.
INDEX_EVERY_EVENTS = 300
EDGE_BYTES = 4096


def read_history(run: RunDir, deadline: float = math.inf) -> History:
    """Return the history of a run, and bring the index up to date where much was read.

    Raises ConfigError when the journal cannot be read, or not before the ``deadline``, a time of
    the monotonic clock. What was read by then is in the index.
    """
    try:
        with open(open_regular(run.journal_file, os.O_RDONLY), "rb") as journal:
            history, unread = _read(run, journal, deadline)
    except FileNotFoundError:
        return History()
    except OSError as error:
        raise ConfigError(
            f"cannot read {run.journal_file}: {error.strerror}; fix this, or move the file away: "
            "the run then continues without its history"
        ) from None
    if unread:
        raise ConfigError(
            f"cannot read {run.journal_file} in time: {unread} bytes are left; "
            f"`orchestrator status {run.root}` takes longer and goes on from here, or move the "
            "file away: the run then continues without its history"
        )
    return history


def rotate_journal(run: RunDir, limit_bytes: int) -> None:
    """Continue a journal that exceeds the limit in a new file, which begins with its history.

    The earlier ones stay, as journal.1.jsonl and so on. Call it only under the run lock, before
    anything is written. Raises ConfigError when the journal cannot be read.
    """
    # A journal that cannot be rotated just grows.
    with contextlib.suppress(OSError):
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
            "check": digest_of(history).hexdigest(),
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


def _read(run: RunDir, journal: BinaryIO, deadline: float) -> tuple[History, int]:
    """Return the history, and the number of bytes that there was no time to read."""
    history, offset = _indexed(run.journal_index_file, journal)
    size = os.fstat(journal.fileno()).st_size
    if size - offset > MAXIMUM_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MAXIMUM_BYTES} bytes")
    journal.seek(offset)
    begin, rest, unread = offset, b"", 0
    # Of a line that is too long each piece counts as damaged.
    while line := journal.readline(MAXIMUM_LINE_BYTES):
        if not line.endswith(b"\n") and len(line) < MAXIMUM_LINE_BYTES:
            rest = line
            break
        offset += len(line)
        _add_line(history, line)
        if time.monotonic() > deadline:
            unread = max(0, size - offset)
            break
    if offset - begin >= INDEX_EVERY_BYTES:
        _write_index(run.journal_index_file, journal, history, offset)
    # The line may be torn, or not written completely yet: it is no part of the index.
    _add_line(history, rest)
    return history, unread


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
            return checked_history(content["history"]), offset
    except (OSError, ValueError, TypeError, KeyError):
        pass  # it is missing, damaged or another version's
    return History(), 0


def _write_index(index: Path, journal: BinaryIO, history: History, offset: int) -> None:
    # Without the index the journal is read again: a read-only directory costs only time.
    with contextlib.suppress(OSError):
        content = {
            "format_version": FORMAT_VERSION,
            "offset": offset,
            "check": _check(journal, offset, asdict(history)),
            "history": asdict(history),
        }
        replace_disposable_file(index, json.dumps(content).encode())


def _check(journal: BinaryIO, offset: int, history: dict[str, Any]) -> str:
    """Return a digest of the history and of both ends of the journal that it was read from."""
    digest = digest_of(history)
    for position in (0, max(0, offset - EDGE_BYTES)):
        journal.seek(position)
        digest.update(journal.read(min(EDGE_BYTES, offset - position)))
    return digest.hexdigest()
