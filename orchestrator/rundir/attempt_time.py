"""Divides the wall time of one attempt, by what the journal says of its start and of its end."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.rundir.failure_times import is_duration
from orchestrator.rundir.moments import Moment, Span
from orchestrator.rundir.time_ledger import Part, Seconds


class Trained(NamedTuple):
    """Seconds of training, and the steps that they belong to."""

    first_step: int
    last_step: int
    seconds: float


@dataclass(frozen=True)
class AttemptTime:
    """The parts of an attempt's time; ``trained`` says which steps its training belongs to."""

    seconds: Seconds
    trained: list[Trained] = field(default_factory=list)


@dataclass
class OpenAttempt:
    """What is known of an attempt whose end the journal has not told yet."""

    number: int | None
    """None in a run without a supervisor."""
    begun: Moment
    first_step: int
    starts_as: str
    """The part that its start belongs to."""
    starting_seconds: float | None = None
    """How long its start took; None before its training has begun."""
    saving_seconds: float = 0.0
    """How long it has stood still to save, when that was told last."""
    last_seen: Moment = field(default_factory=Moment)
    last_step: int = 0
    saved: Moment | None = None
    """Its newest checkpoint."""
    is_stopping: bool = False
    """Whether it saves for a stop, and then ends."""


class _Allotment:
    """Gives a span of time to parts, which then add up to it whatever the journal says."""

    def __init__(self, span: Span) -> None:
        self.left = span.awake
        self.seconds: Seconds = {Part.WAITING: span.asleep} if span.asleep else {}

    def give(self, part: str, seconds: Any) -> float:
        """Give a part its seconds, or what is left of the span; return how much it got."""
        given = min(seconds, self.left) if is_duration(seconds) else 0.0
        self.left -= given
        self.seconds[part] = self.seconds.get(part, 0.0) + given
        return given

    def give_rest(self, part: str) -> float:
        """Give a part all that is left; return how much it got."""
        return self.give(part, self.left)


def ended(attempt: OpenAttempt, end: dict[str, Any], moment: Moment) -> AttemptTime:
    """Divide the time of an attempt whose end the event ``end`` tells."""
    allotment = _Allotment(attempt.begun.until(moment))
    has_failed = end.get("outcome") == "failed"
    is_adopted = end.get("phase") is None and bool(end.get("connected"))
    if "training_seconds" not in end:  # an older version has written it
        allotment.give_rest(Part.UNKNOWN)
    elif is_duration(training := end["training_seconds"]):
        allotment.give(attempt.starts_as, end.get("starting_seconds"))
        seconds = allotment.give(Part.TRAINING, training)
        allotment.give(Part.SAVING, end.get("saving_seconds"))
        allotment.give(_unfinished_part(end, has_failed), end.get("unfinished_seconds"))
        allotment.give_rest(Part.RESTARTING if has_failed else Part.STOPPING)
        return AttemptTime(allotment.seconds, _trained(attempt, end, seconds))
    elif is_adopted:
        is_complete = end.get("outcome") == "complete"
        seconds = _give_training_of_script(allotment, attempt, all_of_it=is_complete)
        # What came after its last save is in no checkpoint.
        allotment.give_rest(Part.DONE_TWICE)
        return AttemptTime(allotment.seconds, _trained(attempt, end, seconds))
    elif has_failed or end.get("connected"):
        allotment.give_rest(attempt.starts_as)
    else:  # a command that has opened no session
        allotment.give_rest(Part.UNKNOWN)
    return AttemptTime(allotment.seconds)


def running(attempt: OpenAttempt, facts: dict[str, Any], moment: Moment) -> AttemptTime:
    """Divide the time of an attempt that runs; what it trains counts until it is lost.

    ``facts`` has ``starting_seconds`` and ``saving_seconds``, None before its training has begun,
    and ``is_adopted``.
    """
    allotment = _Allotment(attempt.begun.until(moment))
    if facts["is_adopted"]:
        allotment.give_rest(Part.TRAINING)
    elif facts["starting_seconds"] is None:
        allotment.give_rest(attempt.starts_as)
    else:
        allotment.give(attempt.starts_as, facts["starting_seconds"])
        allotment.give(Part.SAVING, facts["saving_seconds"])
        allotment.give_rest(Part.TRAINING)
    return AttemptTime(allotment.seconds)


def interrupted(attempt: OpenAttempt, last_sign: Moment, last_step: Any = None) -> AttemptTime:
    """Divide the time up to the last sign of an attempt whose supervisor recorded no end.

    ``last_step`` is a step that its metrics record.
    """
    allotment = _Allotment(Span(attempt.begun.by_clock_until(last_sign)))
    if attempt.starting_seconds is not None:
        allotment.give(attempt.starts_as, attempt.starting_seconds)
        allotment.give(Part.SAVING, attempt.saving_seconds)
        seconds = allotment.give_rest(Part.TRAINING)
    else:  # perhaps a script that saves for itself: what it has saved, it has trained
        seconds = _give_training_of_script(allotment, attempt)
        allotment.give_rest(Part.UNKNOWN)
    last = max(attempt.last_step, last_step if isinstance(last_step, int) else 0)
    return AttemptTime(allotment.seconds, [Trained(attempt.first_step, last, seconds)])


def _give_training_of_script(
    allotment: _Allotment, attempt: OpenAttempt, *, all_of_it: bool = False
) -> float:
    if all_of_it:
        return allotment.give_rest(Part.TRAINING)
    if attempt.saved is None:
        return 0.0
    return allotment.give(Part.TRAINING, attempt.begun.by_clock_until(attempt.saved))


def _unfinished_part(end: dict[str, Any], has_failed: bool) -> str:
    """Return what the time after the last safe point, or after the last save, was spent for."""
    if not has_failed:
        return Part.STOPPING
    if end.get("hang") is not None:
        return Part.RESTARTING
    return Part.SAVING if end.get("phase") == "save" else Part.DONE_TWICE


def _trained(attempt: OpenAttempt, end: dict[str, Any], seconds: float) -> list[Trained]:
    """Return the training up to the snapshot that the attempt has left, and that beyond it."""
    first, step, left = attempt.first_step, end.get("step"), end.get("left_step")
    last = max(first, step if isinstance(step, int) else attempt.last_step)
    lost = end.get("lost_seconds")
    if isinstance(left, int) and first <= left <= last and is_duration(lost):
        lost = min(lost, seconds)
        return [Trained(first, left, seconds - lost), Trained(left, last, lost)]
    return [Trained(first, last, seconds)]
