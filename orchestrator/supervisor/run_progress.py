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
        self._pace.report(time.monotonic(), attempt.number, attempt.step)
        self._totals = attempt.main.totals

    def of(self, attempt: Attempt) -> Progress:
        """Return the progress in an attempt, or at its end."""
        if attempt.adopted is not None:
            return Progress.of(attempt.adopted.step, None)
        if attempt.reached_safe_point or (attempt.connected and not attempt.resumes):
            counts, totals = (attempt.step, attempt.epoch), attempt.main.totals
        elif attempt.resumes:  # its page is empty until it has restored what it resumes from
            counts, totals = (attempt.start_step, attempt.start_epoch), self._totals
        else:
            return Progress()
        return Progress.of(*counts, *totals, self._pace.steps_per_second)
