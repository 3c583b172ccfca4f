"""Goodput: what the wall time of a run was spent for, as its journal tells (goodput.md).

The events are read once, in their order. The clock counts only where no uptime is known: up to the
start of a supervisor, which may be on another machine. A clock that is behind makes such a gap
shorter, and never negative.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.rundir import attempt_time
from orchestrator.rundir.attempt_time import AttemptTime, OpenAttempt
from orchestrator.rundir.failure_times import is_duration
from orchestrator.rundir.journal import JournalEvent
from orchestrator.rundir.moments import Moment
from orchestrator.rundir.time_ledger import Part, Seconds, TimeLedger


class Doing(StrEnum):
    """What a run is doing between two events."""

    NOTHING_YET = "nothing_yet"
    STARTING = "starting"
    RUNNING = "running"
    """An attempt runs."""
    RESTARTING = "restarting"
    """An attempt has failed, and the next one follows."""
    STOPPING = "stopping"
    """An attempt has ended without a failure."""
    STOPPED = "stopped"
    """No supervisor is there."""


_NOTHING: Seconds = dict.fromkeys((part.value for part in Part), 0.0)
# What the time between two attempts belongs to.
_PARTS = {
    Doing.STARTING: Part.STARTING,
    Doing.RUNNING: Part.UNKNOWN,  # the end of an attempt is missing in the journal
    Doing.RESTARTING: Part.RESTARTING,
    Doing.STOPPING: Part.STOPPING,
}


@dataclass
class Goodput:
    """The wall time of a run so far, and what it is doing now."""

    ledger: TimeLedger = field(default_factory=TimeLedger)
    doing: Doing = Doing.NOTHING_YET
    since: Moment = field(default_factory=Moment)
    """The last event that ended a part."""
    delay_seconds: float = 0.0
    """How long the next attempt is to be waited for."""
    is_queued: bool = False
    """Whether the job that has ended is queued again."""
    attempt: OpenAttempt | None = None

    def add(self, event: dict[str, Any]) -> None:
        """Add the next event of the journal."""
        moment = Moment.of(event)
        match event["event"]:
            case JournalEvent.RUN_STARTED:
                self._begin_supervisor(event, moment)
            case JournalEvent.ATTEMPT_STARTED:
                self._begin_attempt(event, moment)
            case JournalEvent.TRAINING_STARTED:
                self._begin_training(event, moment)
            case JournalEvent.ATTEMPT_EXITED if self.attempt is not None:
                self._end_attempt(self.attempt, event, moment)
            case JournalEvent.TRAINING_ENDED if self.attempt is not None:
                self._record(attempt_time.ended(self.attempt, event, moment))
                self._go_on(Doing.STOPPED, moment)
            case JournalEvent.RESTART_SCHEDULED:
                delay = event.get("delay_seconds")
                self.delay_seconds = float(delay) if is_duration(delay) else 0.0
            case JournalEvent.RUN_COMPLETED | JournalEvent.RUN_STOPPED | JournalEvent.GAVE_UP:
                self._end_supervisor(event, moment)
            case JournalEvent.REQUEUED:
                self.is_queued = event.get("problem") is None
            case _ if self.attempt is not None:
                self._see(self.attempt, event, moment)

    def add_unknown(self, begun: str | None, event: dict[str, Any]) -> None:
        """Add the time up to an event of which nothing is known but when it began."""
        moment = Moment.of(event)
        self.ledger.add({Part.UNKNOWN: Moment(begun).by_clock_until(moment)})
        self._go_on(Doing.STOPPED, moment)

    # --- the events --------------------------------------------------------------------------

    def _begin_supervisor(self, event: dict[str, Any], moment: Moment) -> None:
        before = self.since
        ended_as = Part.UNKNOWN  # where the last supervisor has recorded no end
        if self.attempt is not None:
            recorded = Moment(event.get("last_step_time"))
            before = self._last_sign(self.attempt, recorded)
            has_recorded = self.attempt.begun.by_clock_until(recorded) > 0
            knows_end = self.attempt.is_stopping or has_recorded
            ended_as = Part.IDLE if knows_end else Part.UNKNOWN
            step = event.get("last_step")
            self._record(attempt_time.interrupted(self.attempt, before, step))
        elif self.doing == Doing.STOPPED:
            ended_as = Part.WAITING if self.is_queued else Part.IDLE
        self.ledger.begin_share()
        self.ledger.add({ended_as: before.by_clock_until(moment)})
        self._go_on(Doing.STARTING, moment)

    @staticmethod
    def _last_sign(attempt: OpenAttempt, recorded: Moment) -> Moment:
        """Return the last sign of an attempt: an event, or what its metrics record."""
        seen = attempt.last_seen
        return recorded if seen.by_clock_until(recorded) > 0 else seen

    def _begin_attempt(self, event: dict[str, Any], moment: Moment) -> None:
        if self.attempt is not None:  # its end is missing in the journal
            self._record(attempt_time.interrupted(self.attempt, self.attempt.last_seen))
            self.since = self.attempt.last_seen
        number = None if event.get("attempt") is None else _count_in(event, "attempt")
        if self.ledger.current.attempt is None:
            self.ledger.current.attempt = number
        else:
            self.ledger.begin_share(number)
        self.ledger.add(self._gap(moment))
        is_first = self.doing in (Doing.STARTING, Doing.NOTHING_YET)
        starts_as = Part.STARTING if is_first else Part.RESTARTING
        self._go_on(Doing.RUNNING, moment)
        self._open_attempt(number, _count_in(event, "resume_step"), starts_as, moment)

    def _open_attempt(
        self, number: int | None, first_step: int, starts_as: str, begun: Moment
    ) -> None:
        self.ledger.roll_back(first_step)
        self.attempt = OpenAttempt(
            number, begun, first_step, starts_as, last_seen=begun, last_step=first_step
        )

    def _begin_training(self, event: dict[str, Any], moment: Moment) -> None:
        if self.attempt is None:  # a script without a supervisor, which is its own only attempt
            if self.doing != Doing.STARTING:
                return
            self.doing = Doing.RUNNING
            self._open_attempt(None, _count_in(event, "step"), Part.STARTING, self.since)
        if self.attempt is not None:
            seconds = event.get("starting_seconds")
            self.attempt.starting_seconds = float(seconds) if is_duration(seconds) else None
            self.attempt.last_seen = moment

    @staticmethod
    def _see(attempt: OpenAttempt, event: dict[str, Any], moment: Moment) -> None:
        """Note a sign of life of the attempt."""
        is_publication = event["event"] == JournalEvent.CHECKPOINT_PUBLISHED
        if event.get("attempt") != attempt.number or (is_publication and event.get("source")):
            return  # such as the import of a checkpoint
        attempt.last_seen = moment
        attempt.last_step = max(attempt.last_step, _count_in(event, "step"))
        if is_duration(seconds := event.get("saving_seconds")):
            attempt.saving_seconds = max(attempt.saving_seconds, float(seconds))
        if is_publication:
            attempt.saved = moment
        elif event["event"] == JournalEvent.STOP_NOTICED:
            attempt.is_stopping = True

    def _end_attempt(self, attempt: OpenAttempt, event: dict[str, Any], moment: Moment) -> None:
        self._record(attempt_time.ended(attempt, event, moment))
        has_failed = event.get("outcome") == "failed"
        self._go_on(Doing.RESTARTING if has_failed else Doing.STOPPING, moment)

    def _end_supervisor(self, event: dict[str, Any], moment: Moment) -> None:
        if self.attempt is not None:  # its end is missing in the journal
            self._record(attempt_time.ended(self.attempt, event, moment))
        else:
            self.ledger.add(self._gap(moment, is_last=True))
        self._go_on(Doing.STOPPED, moment)

    def _record(self, time: AttemptTime) -> None:
        self.ledger.add(time.seconds)
        for trained in time.trained:
            self.ledger.count(*trained)

    def _go_on(self, doing: Doing, moment: Moment) -> None:
        self.doing, self.since, self.attempt = doing, moment, None
        self.delay_seconds, self.is_queued = 0.0, False

    def _gap(self, moment: Moment, *, is_last: bool = False) -> Seconds:
        """Return what the time since the last event was spent for, while no attempt ran."""
        span = self.since.until(moment)
        if self.doing in (Doing.NOTHING_YET, Doing.STOPPED):
            return {}
        waiting = min(self.delay_seconds, span.awake)
        part = _PARTS[self.doing]
        if is_last and part is Part.RESTARTING:
            part = Part.STOPPING  # no attempt has followed
        return {Part.WAITING: waiting + span.asleep, part: span.awake - waiting}

    # --- the report --------------------------------------------------------------------------

    def to_json(
        self, now: Moment | None = None, running: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the ``goodput`` object of `status --json`.

        Args:
            now: This moment, in the supervisor of the run; None without one.
            running: What the supervisor knows of its attempt (``attempt_time.running``).
        """
        more: Seconds = {}
        if self.attempt is not None and now is not None and running is not None:
            more = attempt_time.running(self.attempt, running, now).seconds
        elif self.attempt is not None:
            more = attempt_time.interrupted(self.attempt, self.attempt.last_seen).seconds
        elif now is not None:
            more = self._gap(now)
        seconds = _rounded(self.ledger.seconds, more)
        wall = sum(seconds.values())
        *earlier, current = self.ledger.shares
        attempts = [(share.attempt, _rounded(share.seconds)) for share in earlier]
        attempts.append((current.attempt, _rounded(current.seconds, more)))
        return {
            "percent": int(1000 * seconds[Part.TRAINING] / wall) / 10 if wall else None,
            "wall_seconds": round(wall, 3),
            "seconds": seconds,
            "attempts": [
                {"attempt": attempt, "seconds": of_attempt}
                for attempt, of_attempt in attempts
                if attempt is not None or any(of_attempt.values())
            ],
        }


def _count_in(event: dict[str, Any], key: str) -> int:
    count = event.get(key)
    return max(0, int(count)) if isinstance(count, int) else 0


def _rounded(seconds: Seconds, more: Seconds | None = None) -> Seconds:
    rounded = _NOTHING | {part: round(spent, 3) for part, spent in seconds.items()}
    for part, spent in (more or {}).items():
        rounded[part] = round(seconds.get(part, 0.0) + spent, 3)
    return rounded
