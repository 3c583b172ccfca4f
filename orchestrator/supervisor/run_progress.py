"""How far the run is, over all of its attempts."""

import time

from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.recent_pace import RecentPace
from orchestrator.telemetry.progress import Progress


class RunProgress:
    """The progress of the run; what a trainer has told holds until the next one tells it again."""

    def __init__(self) -> None:
        self._pace = RecentPace()
        self._totals: tuple[int | None, int | None] = None, None

    def on_report(self, attempt: Attempt) -> None:
        """Record that the trainer has passed a safe point; about once a second."""
        self._pace.report(time.monotonic(), attempt.step)
        self._totals = self._totals_in(attempt)

    def of(self, attempt: Attempt) -> Progress:
        """Return the progress in an attempt, or at its end."""
        if attempt.adopted is not None:
            return Progress.of(attempt.adopted.step, None)
        if attempt.reached_safe_point or (attempt.connected and not attempt.resumes):
            counts = attempt.step, attempt.epoch
        elif attempt.resumes:  # its page is empty until it has restored what it resumes from
            counts = attempt.start_step, attempt.start_epoch
        else:
            return Progress()
        return Progress.of(*counts, *self._totals_in(attempt), self._pace.steps_per_second)

    def _totals_in(self, attempt: Attempt) -> tuple[int | None, int | None]:
        told = attempt.main.totals
        return self._totals if told == (None, None) else told
