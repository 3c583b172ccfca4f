"""Counts failures since the last progress, across supervisor restarts.

The budget is read from the journal at the start, so that a requeue or a reboot does not refill it.
Only a new checkpoint refills it, never uptime.
"""

import contextlib
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from orchestrator.checkpoint.position import Position
from orchestrator.rundir.history import History
from orchestrator.rundir.journal import JournalEvent
from orchestrator.supervisor.recovery.diagnosis import Outcome
from orchestrator.supervisor.recovery.failure_kinds import Kind
from orchestrator.system.units import duration_text

# Ended by another process or by a person, which says nothing about the script.
OUTSIDE = frozenset({Kind.KILLED, Kind.TERMINATED})
NO_FAILURES = frozenset({Kind.COMPLETE, Kind.STOPPED, Kind.REFUSED, Kind.FAILED_AFTERWARDS})


# A checkpoint of step 0 is progress: scripts that save for themselves count epochs from 0.
BEFORE_ALL = Position(-1, 0)


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended, as far as decisions depend on it.

    ``loading`` is the position of the checkpoint or snapshot that it was loading when it ended.
    ``resumed_step`` is the step from which it reported that it had resumed: a script that fails
    before that says nothing about the checkpoint. ``rejected_snapshot``: it could not load the
    snapshot in memory.
    """

    kind: Kind
    fingerprint: str | None = None
    step: int = 0
    resumed_step: int | None = None
    loading: Position | None = None
    rejected_snapshot: bool = False
    reached_safe_point: bool = False
    connected: bool = False

    @classmethod
    def from_event(cls, event: dict[str, Any]) -> Self:
        """Return the end that the journal's ``attempt_exited`` records."""
        loading = event.get("loading_step")
        return cls(
            kind=_kind(event),
            fingerprint=event.get("fingerprint"),
            step=_count(event, "step"),
            resumed_step=event.get("resumed_step"),
            loading=(
                None if loading is None else Position(loading, _count(event, "loading_epoch"))
            ),
            reached_safe_point=bool(event.get("reached_safe_point")),
            connected=bool(event.get("connected")),
        )


@dataclass(frozen=True)
class TotalLimits:
    """What a run may have in all, whatever its progress; None is without limit."""

    attempts: int | None = None
    seconds: float | None = None


@dataclass
class FailureBudget:
    """The failures since the last progress, and how many are allowed."""

    allowed: int
    failures: list[AttemptEnd] = field(default_factory=list)
    not_passed: list[AttemptEnd] = field(default_factory=list)
    """Failures at steps that no checkpoint has passed, whatever was saved before them."""
    slices: int = 0
    """Ends from outside, and stops and machine failures before which nothing new was saved."""
    demoted: bool = False
    ever_safe: bool = False
    furthest: Position = BEFORE_ALL
    limits: TotalLimits = TotalLimits()
    attempts: int = 0
    """The attempts since the run began, or since it last gave up."""
    begun: float | None = None
    """When the first of them began, in seconds since the epoch."""
    _progressed: bool = False

    @property
    def spent(self) -> int:
        """How many failures count now."""
        return len(self.failures)

    def refill(self, position: Position) -> None:
        """Start to count from 0 if this checkpoint's position is further than any before it.

        Publishing the same steps again after each restart is no progress.
        """
        if position <= self.furthest:
            return
        self.furthest = position
        self.failures.clear()
        self.not_passed = [failure for failure in self.not_passed if failure.step >= position.step]
        self.slices = 0
        self.demoted = False
        self.ever_safe = self._progressed = True

    def record_end(self, end: AttemptEnd) -> None:
        """Count the end of an attempt; call it before ``decide``."""
        if end.kind in OUTSIDE:
            self.slices += 1
        elif end.kind is Kind.STOPPED and end.connected:
            # The saves of a command without a session are not seen.
            self._record_end_in_vain()
        if end.kind not in NO_FAILURES:
            self.failures.append(end)
            self.not_passed.append(end)
        self.ever_safe = self.ever_safe or end.reached_safe_point

    def begin_attempt(self, now: float) -> None:
        """Record the start of an attempt, in seconds since the epoch."""
        self._progressed = False
        self.attempts += 1
        self.begun = now if self.begun is None else self.begun

    @property
    def attempts_are_spent(self) -> bool:
        """Whether the run has had all the attempts that it may have."""
        return self.limits.attempts is not None and self.attempts >= self.limits.attempts

    def seconds_left(self) -> float | None:
        """Return the time that the run may still take; None without a limit."""
        if self.limits.seconds is None:
            return None
        passed = 0.0 if self.begun is None else time.time() - self.begun
        return self.limits.seconds - passed

    @property
    def time_is_up(self) -> bool:
        """Whether the run has had all the time that it may have."""
        left = self.seconds_left()
        return left is not None and left <= 0

    def limit_reached(self) -> str | None:
        """Return which total limit allows no further attempt, in words; None if none does."""
        if self.time_is_up:
            return f"the {duration_text(self.limits.seconds or 0)} of --give-up-after are over"
        if self.attempts_are_spent:
            return f"it has had {self.attempts} attempts, and --max-attempts allows no more"
        return None

    def _record_end_in_vain(self) -> None:
        if not self._progressed:
            self.slices += 1

    @classmethod
    def from_history(cls, allowed: int, history: History, limits: TotalLimits) -> Self:
        """Return the budget that earlier supervisors of this run have left."""
        budget = cls.from_journal(allowed, history.since_progress)
        budget.limits, budget.attempts = limits, history.attempts_since_give_up
        budget.begun = None if history.begun is None else _seconds_of(history.begun)
        return budget

    @classmethod
    def from_journal(cls, allowed: int, events: list[dict[str, Any]]) -> Self:
        """Return the budget without total limits that these events of the journal have left."""
        budget = cls(allowed)
        alive = False
        for event in events:
            match event["event"]:
                case JournalEvent.ATTEMPT_STARTED:
                    if alive:
                        budget._record_missing_end()
                    budget._progressed = False
                    alive = True
                case JournalEvent.CHECKPOINT_PUBLISHED if event.get("healthy", True):
                    budget.refill(_position(event, "step", "epoch"))
                case JournalEvent.CHECKPOINT_QUARANTINED if event.get("demoted"):
                    budget.demoted = True
                case JournalEvent.ATTEMPT_EXITED:
                    alive = False
                    if event.get("left_step") is not None:
                        budget.refill(_position(event, "left_step", "left_epoch"))
                    budget.record_end(AttemptEnd.from_event(event))
                case JournalEvent.GAVE_UP:
                    # A person who runs it again has changed something. But until there is progress
                    # no rerun may set aside yet another checkpoint.
                    budget.failures.clear()
                    budget.not_passed.clear()
                    budget.slices = 0
        if alive:
            budget._record_missing_end()
        return budget

    def _record_missing_end(self) -> None:
        """Count an attempt without a recorded end: its supervisor or the machine died with it."""
        if self.ever_safe:
            self._record_end_in_vain()


def _kind(event: dict[str, Any]) -> Kind:
    with contextlib.suppress(ValueError):
        return Kind(str(event.get("kind")))
    # Early journals have no kinds; an end from outside has no fingerprint there.
    if event.get("outcome") != Outcome.FAILED:
        return Kind.STOPPED
    return Kind.EXCEPTION if event.get("fingerprint") else Kind.KILLED


def _count(event: dict[str, Any], key: str) -> int:
    value = event.get(key)
    return value if isinstance(value, int) else 0


def _seconds_of(text: str) -> float:
    """Return the seconds since the epoch; the present for a text that is no time."""
    with contextlib.suppress(ValueError, OverflowError):
        return datetime.fromisoformat(text).timestamp()
    return time.time()


def _position(event: dict[str, Any], step: str, epoch: str) -> Position:
    return Position(_count(event, step), _count(event, epoch))
