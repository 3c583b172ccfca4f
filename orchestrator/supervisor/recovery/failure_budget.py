"""What a run has been through since it last made progress, over all of its supervisors.

It is read from the journal at the start, so that a requeue or a reboot does not refill it; only a
newly published checkpoint does, never uptime.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any, Self

from orchestrator.rundir.journal import JournalEvent
from orchestrator.supervisor.recovery.diagnosis import Outcome
from orchestrator.supervisor.recovery.symptoms import Kind

# Ended by somebody or something that is not the run: says nothing of the script.
OUTSIDE = frozenset({Kind.KILLED, Kind.TERMINATED})

Place = tuple[int, int]
"""Completed steps and epochs: checkpoints are compared by both."""


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended, as far as decisions depend on it.

    ``loading`` is the place of the checkpoint or snapshot that it was loading when it ended, and
    ``resumed_step`` the step at which it said that it had resumed: a script that failed before that
    says nothing about the checkpoint. ``rejected_snapshot``: it could not load what was in memory.
    """

    kind: Kind
    fingerprint: str | None = None
    step: int = 0
    resumed_step: int | None = None
    loading: Place | None = None
    rejected_snapshot: bool = False
    reached_safe_point: bool = False
    connected: bool = False

    @classmethod
    def from_event(cls, event: dict[str, Any]) -> Self:
        """From ``attempt_exited`` in the journal."""
        loading = event.get("loading_step")
        return cls(
            kind=_kind(event),
            fingerprint=event.get("fingerprint"),
            step=_count(event, "step"),
            resumed_step=event.get("resumed_step"),
            loading=None if loading is None else (loading, _count(event, "loading_epoch")),
            reached_safe_point=bool(event.get("reached_safe_point")),
            connected=bool(event.get("connected")),
        )


@dataclass
class FailureBudget:
    """Failures since the last progress, against how many are allowed."""

    allowed: int
    failures: list[AttemptEnd] = field(default_factory=list)
    not_passed: list[AttemptEnd] = field(default_factory=list)
    """Failures at steps beyond which no checkpoint has come, whatever was saved before them."""
    slices: int = 0
    """Ends from outside; stops and the ends of whole machines only where nothing was saved."""
    demoted: bool = False
    ever_safe: bool = False
    furthest: Place = (-1, 0)
    """A checkpoint of step 0 is progress: scripts that save for themselves count epochs from 0."""
    _progressed: bool = False

    @property
    def spent(self) -> int:
        """How many failures count now."""
        return len(self.failures)

    def refill(self, step: int, epoch: int) -> None:
        """Start counting anew if this published checkpoint is further than any before it.

        Publishing the same steps again after each restart is no progress.
        """
        if (step, epoch) <= self.furthest:
            return
        self.furthest = (step, epoch)
        self.failures.clear()
        self.not_passed = [failure for failure in self.not_passed if failure.step >= step]
        self.slices = 0
        self.demoted = False
        self.ever_safe = self._progressed = True

    def record(self, end: AttemptEnd) -> None:
        """Count the end of an attempt; do it before deciding."""
        if end.kind in OUTSIDE:
            self.slices += 1
        elif end.kind is Kind.STOPPED and end.connected:
            # A command without a session saves nothing that we would see.
            self._end_in_vain()
        if end.kind not in _NO_FAILURES:
            self.failures.append(end)
            self.not_passed.append(end)
        self.ever_safe = self.ever_safe or end.reached_safe_point

    def begin(self) -> None:
        """A new attempt begins."""
        self._progressed = False

    def _end_in_vain(self) -> None:
        if not self._progressed:
            self.slices += 1

    @classmethod
    def from_journal(cls, allowed: int, events: list[dict[str, Any]]) -> Self:
        """What earlier supervisors of this run left."""
        budget = cls(allowed)
        alive = False
        for event in events:
            match event["event"]:
                case JournalEvent.ATTEMPT_STARTED:
                    if alive:
                        budget._vanish()
                    budget.begin()
                    alive = True
                case JournalEvent.CHECKPOINT_PUBLISHED if event.get("healthy", True):
                    budget.refill(_count(event, "step"), _count(event, "epoch"))
                case JournalEvent.CHECKPOINT_QUARANTINED if event.get("demoted"):
                    budget.demoted = True
                case JournalEvent.ATTEMPT_EXITED:
                    alive = False
                    if event.get("left_step") is not None:
                        budget.refill(_count(event, "left_step"), _count(event, "left_epoch"))
                    budget.record(AttemptEnd.from_event(event))
                case JournalEvent.GAVE_UP:
                    # A person who runs it again after that has changed something. But without
                    # progress no rerun may set aside yet another checkpoint.
                    budget.failures.clear()
                    budget.not_passed.clear()
                    budget.slices = 0
        if alive:
            budget._vanish()
        return budget

    def _vanish(self) -> None:
        """An attempt has no recorded end: its supervisor died with it, or the machine did."""
        if self.ever_safe:
            self._end_in_vain()


_NO_FAILURES = frozenset({Kind.COMPLETE, Kind.STOPPED, Kind.REFUSED, Kind.FAILED_AFTERWARDS})


def _kind(event: dict[str, Any]) -> Kind:
    with contextlib.suppress(ValueError):
        return Kind(str(event.get("kind")))
    # Written before there were kinds: an end from outside had no fingerprint.
    if event.get("outcome") != Outcome.FAILED:
        return Kind.STOPPED
    return Kind.EXCEPTION if event.get("fingerprint") else Kind.KILLED


def _count(event: dict[str, Any], key: str) -> int:
    value = event.get(key)
    return value if isinstance(value, int) else 0
