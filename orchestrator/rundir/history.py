"""What the journal tells about the past of a run: a summary that does not grow with the journal."""

import hashlib
import json
import os
from dataclasses import dataclass, field
from types import UnionType
from typing import Any

from orchestrator.rundir.failure_times import FailureTimes, is_duration
from orchestrator.rundir.goodput import Goodput
from orchestrator.rundir.goodput_json import checked_goodput
from orchestrator.rundir.journal import (
    JournalEvent,
    checked_event,
)

RECENT_SAVES = 20
RECENT_ENDS = 200
# A budget that allows more failures without progress than this counts too few of them.
MOST_FAILURES = 1000
MOST_PUBLISHED = 100_000
# The program knows fewer kinds of ends; another one may have written any text.
MOST_KINDS = 100
ENDS = (JournalEvent.RUN_COMPLETED, JournalEvent.RUN_STOPPED, JournalEvent.GAVE_UP)
_MARKS = (*ENDS, JournalEvent.RUN_STARTED, JournalEvent.ATTEMPT_STARTED)
_SAVES = (JournalEvent.CHECKPOINT_PUBLISHED, JournalEvent.CHECKPOINT_FAILED)
# What the failure budget depends on. Another program may have written anything else, of any size.
_DECISIVE = (
    *("event", "attempt", "kind", "outcome", "fingerprint", "step", "epoch", "healthy", "demoted"),
    *("resumed_step", "loading_step", "loading_epoch", "left_step", "left_epoch"),
    *("reached_safe_point", "connected"),
)
LONGEST_KEPT_TEXT = 1000
_HISTORY_TYPES: dict[str, type | UnionType] = {
    **dict.fromkeys(("damaged", "restarts", "has_attempts", "attempts_since_give_up"), int),
    "attempt": int | None,
    "begun": str | None,
    **dict.fromkeys(("last_mark", "last_save", "last_stop", "last_give_up", "last_exit"), dict),
    **dict.fromkeys(("save_seconds", "furthest", "since_progress", "failed_after"), list),
    "clean_seconds": int | float,
    **dict.fromkeys(("published", "ends", "restarts_by_kind"), dict),
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
    restarts_by_kind: dict[str, int] = field(default_factory=dict)
    """How many restarts followed an attempt that ended in each way; an older index has none."""
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
    failed_after: list[float] = field(default_factory=list)
    """How long the run trained before each of its newest failures, the newest last."""
    clean_seconds: float = 0.0
    """How long it has trained since."""
    ends: dict[str, int] = field(default_factory=dict)
    """How often attempts ended in each way, for the ways that were seen last."""
    goodput: Goodput = field(default_factory=Goodput)
    """What the wall time was spent for."""

    @property
    def was_interrupted(self) -> bool:
        """Whether the last supervisor has started an attempt, and recorded no end of the run."""
        return self.last_mark.get("event") == JournalEvent.ATTEMPT_STARTED

    @property
    def failure_times(self) -> FailureTimes:
        """How long the run trained before each of its newest failures."""
        return FailureTimes(self.failed_after, self.clean_seconds)

    def add(self, event: dict[str, Any]) -> None:
        """Add the next event of the journal."""
        name = event["event"]
        if name == JournalEvent.JOURNAL_ROTATED:
            self._go_on_from(event)
            return
        self.goodput.add(event)
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
                self._add_restart()
            case JournalEvent.CHECKPOINT_PUBLISHED:
                self._add_publication(event)
            case JournalEvent.CHECKPOINT_DELETED:
                self.published.pop(_name(event), None)
            case JournalEvent.CHECKPOINT_QUARANTINED if event.get("demoted"):
                self.since_progress.append(_slim(event))
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
            if event["check"] != digest_of(carried).hexdigest():
                raise ValueError("the history is damaged")
            history = checked_history(carried)
            if "goodput" not in carried:  # an older version has written it
                history.goodput.add_unknown(history.begun, event)
            vars(self).update(vars(history))
        except (ValueError, TypeError, KeyError):  # also another version's
            self.damaged += 1

    def times_ended_like(self, event: dict[str, Any]) -> int:
        """Return how many attempts ended with the same defect at the same step as this one."""
        return self.ends.get(_way_of(event), 0)

    def _add_publication(self, event: dict[str, Any]) -> None:
        self.published[_name(event)] = None
        if len(self.published) > 2 * MOST_PUBLISHED:  # not one by one, which takes long in a dict
            self.published = dict.fromkeys(list(self.published)[-MOST_PUBLISHED:])
        seconds = event.get("seconds")
        if is_duration(seconds):
            self.save_seconds = [*self.save_seconds, seconds][-RECENT_SAVES:]
        if (position := _published(event)) is not None:
            self._add_progress(event, position)

    def _add_restart(self) -> None:
        kind = self.last_exit.get("kind")
        if isinstance(kind, str) and len(kind) <= LONGEST_KEPT_TEXT:
            count = self.restarts_by_kind.get(kind, 0)
            if count or len(self.restarts_by_kind) < MOST_KINDS:
                self.restarts_by_kind[kind] = count + 1

    def _add_exit(self, event: dict[str, Any]) -> None:
        self.last_exit = event
        times = self.failure_times
        times.add(event)
        self.failed_after, self.clean_seconds = times.before, times.since
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


def _name(event: dict[str, Any]) -> str:
    return os.path.basename(str(event.get("path")))[:LONGEST_KEPT_TEXT]


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
    return json.dumps([_kept(event.get(key)) for key in ("kind", "fingerprint", "step")])


def _slim(event: dict[str, Any]) -> dict[str, Any]:
    return {key: _kept(event[key]) for key in _DECISIVE if key in event}


def _kept(value: Any) -> Any:
    if isinstance(value, str):
        return value[:LONGEST_KEPT_TEXT]
    return value if isinstance(value, int | float | None) else bool(value)


def checked_history(content: dict[str, Any]) -> History:
    """Return the history of an index or of the journal before this one.

    Raises ValueError, TypeError or KeyError for wrong types.
    """
    history = History(**content)
    if "goodput" in content:
        history.goodput = checked_goodput(content["goodput"])
    for name, kind in _HISTORY_TYPES.items():
        if not isinstance(vars(history).get(name), kind):
            raise ValueError(f"{name} has the wrong type")
    marks = (history.last_mark, history.last_save, history.last_stop)
    ends = (history.last_give_up, history.last_exit)
    for event in (*history.since_progress, *filter(None, (*marks, *ends))):
        checked_event(event)
    step, epoch = history.furthest
    if not (
        all(isinstance(count, int) for count in (step, epoch, *_counts_in(history)))
        and all(map(is_duration, [*history.save_seconds, *history.failed_after]))
        and is_duration(history.clean_seconds)
    ):
        raise ValueError("a number has the wrong type")
    return history


def _counts_in(history: History) -> tuple[int, ...]:
    return (*history.ends.values(), *history.restarts_by_kind.values())


def digest_of(history: dict[str, Any]) -> "hashlib.blake2b":
    """Return a digest of a history as it is stored, to which more can be added."""
    return hashlib.blake2b(json.dumps(history).encode(), digest_size=16)
