"""The safe points of one of several ranks: it acts only where all of them have agreed to."""

from orchestrator.training.exits import refusing
from orchestrator.training.loop.due_saves import STOP_REQUEST
from orchestrator.training.loop.totals import Totals
from orchestrator.training.runtime.membership import RunMembership
from orchestrator.training.safe_points import SHOW_METRICS_NS, beat
from orchestrator.training.saving.agreed_saves import AgreedSaves


class AgreedSafePoints:
    """The safe points of a session that is one of several ranks.

    A place is a step or the end of an epoch, which all ranks pass. Not all of them may evaluate, so
    that a poll is a sign of life and no place.
    """

    def __init__(self, membership: RunMembership, saves: AgreedSaves, totals: Totals) -> None:
        self._backend = membership.backend
        self._metrics = membership.metrics
        self._page = membership.page
        self._saving_clock = membership.saving_clock
        self._saves = saves
        self._arrive = saves.places.arrive
        self._progress = saves.progress
        self._totals = totals
        self._show_at_ns = 0

    def poll(self) -> None:
        """Give a sign of life in an evaluation."""
        beat(self._page)

    def reach(self) -> None:
        """Reach the next place, and do what is decided for it.

        Raises:
            TrainingStopped: The decision is to stop, and the state is being saved.
            TrainingRefused: The state cannot be saved; the reason has been printed.
        """
        now = beat(self._page)
        decision = self._arrive()
        if decision is not None or self._page[STOP_REQUEST] or self._saves.has_owed:
            with refusing(), self._saving_clock:
                self._saves.report_stop()
                self._saves.act(decision)
        elif now >= self._show_at_ns:
            self._show_at_ns = now + SHOW_METRICS_NS
            with refusing():
                self._totals.refresh()
                self._backend.report_metrics(self._progress.metric_values())
                self._metrics.flush()
