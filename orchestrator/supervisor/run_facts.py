"""What is known of the run at this moment."""

import asyncio
from dataclasses import dataclass, field
from typing import Self

from orchestrator.rundir.failure_times import FailureTimes
from orchestrator.rundir.goodput import Goodput
from orchestrator.rundir.history import History
from orchestrator.rundir.journal import JournalEvent
from orchestrator.rundir.metrics_end import RecordedStep
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.run_progress import RunProgress
from orchestrator.supervisor.state_machine import Event, StateMachine
from orchestrator.supervisor.stop_request import StopRequest


@dataclass
class RunFacts:
    """The facts about a run: made before all other parts, and readable by every part.

    ``attempt`` is the attempt that runs, or that ran last; None before the first one of this
    supervisor. ``restarts`` counts over all supervisors of the run. ``save_seconds`` is how long
    the last save of the run took; 0 before the first. ``problem`` says why the last save failed;
    None since a save has succeeded.
    """

    stop: StopRequest
    is_new: bool = True
    """Whether no supervisor of this run had started an attempt before this one."""
    was_complete: bool = False
    """Whether the last supervisor of this run ended it as complete."""
    was_interrupted: bool = False
    """Whether the last supervisor of this run died with its attempt."""
    interrupted_at: RecordedStep | None = None
    """The last step that its metrics record; None if unknown."""
    restarts: int = 0
    restarts_by_kind: dict[str, int] = field(default_factory=dict)
    """The restarts by the kind of end that they followed, over all supervisors of the run too."""
    save_seconds: float = 0.0
    problem: str | None = None
    failures: FailureTimes = field(default_factory=FailureTimes)
    """How long the run trained before each of its newest failures, up to the last attempt."""
    progress: RunProgress = field(default_factory=RunProgress)
    """How far the run is, over all of its attempts."""
    trained_before: int = 0
    """The steps that the attempts of this supervisor have completed that are over."""
    goodput: Goodput = field(default_factory=Goodput)
    """What the wall time of the run was spent for, as its journal tells."""
    attempt: Attempt | None = None
    machine: StateMachine = field(default_factory=StateMachine)
    launch_done: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared during a launch: the session may say hello before ``attempt`` is its attempt."""

    @classmethod
    def from_history(cls, stop: StopRequest, history: History) -> Self:
        """Return the facts at the start of a supervisor."""
        return cls(
            stop,
            is_new=not history.has_attempts,
            was_complete=history.last_mark.get("event") == JournalEvent.RUN_COMPLETED,
            was_interrupted=history.was_interrupted,
            restarts=history.restarts,
            restarts_by_kind=history.restarts_by_kind,
            failures=history.failure_times,
            goodput=history.goodput,
            save_seconds=history.save_seconds[-1] if history.save_seconds else 0.0,
        )

    @property
    def running_attempt(self) -> Attempt | None:
        """The attempt, unless it is over."""
        return None if self.attempt is None or self.attempt.over.is_set() else self.attempt

    @property
    def attempt_number(self) -> int | None:
        """The number of ``attempt``."""
        return None if self.attempt is None else self.attempt.number

    @property
    def trained_steps(self) -> int:
        """The steps that trainers have completed under this supervisor, those done again too."""
        running = self.running_attempt
        return self.trained_before + (0 if running is None else running.trained_steps)

    def record_restart(self, kind: str) -> None:
        """Record that another attempt follows one that has ended in this way."""
        self.restarts += 1
        self.restarts_by_kind[kind] = self.restarts_by_kind.get(kind, 0) + 1

    def record_exit(self, attempt: Attempt) -> None:
        """Record that the command of an attempt has ended and its session has left."""
        if not attempt.over.is_set():
            self.machine.handle(Event.EXITED)
            self.trained_before += attempt.trained_steps
            attempt.over.set()
