"""The safe points of a run: signs of life, metrics, and what is to be saved there."""

from time import monotonic_ns
from typing import Protocol

from orchestrator.ipc.control_page import Field
from orchestrator.pace.snapshot_pace import SnapshotPace
from orchestrator.training.exits import refusing
from orchestrator.training.loop.due_saves import CHECKPOINT_REQUESTS, STOP_REQUEST, DueSaves
from orchestrator.training.loop.totals import Totals
from orchestrator.training.runtime.membership import RunMembership
from orchestrator.training.state.progress import Progress

SHOW_METRICS_NS = 1_000_000_000

# Plain integers: the hot path looks them up at every step.
HEARTBEAT = int(Field.HEARTBEAT_NS)
SAFE_POINTS = int(Field.SAFE_POINTS)


def beat(page: memoryview) -> int:
    """Give a sign of life on the control page; return its time (time.monotonic_ns)."""
    page[HEARTBEAT] = now = monotonic_ns()
    page[SAFE_POINTS] += 1
    return now


class SaveStrategy(Protocol):
    """How a run saves: a session its registered objects, a framework by files of its own."""

    @property
    def progress(self) -> Progress:
        """The counters of the run."""

    @property
    def pace(self) -> SnapshotPace:
        """When the next snapshot in memory is due."""

    def attend(self, now_ns: int) -> None:
        """Do what is due at a safe point; what cannot be done yet stays due.

        Raises:
            TrainingStopped: A stop was requested, and the state is saved or being saved.
        """


class SafePoints:
    """The safe points of a session or of a framework's run."""

    def __init__(
        self, membership: RunMembership, due: DueSaves, saves: SaveStrategy, totals: Totals
    ) -> None:
        self._backend = membership.backend
        self._metrics = membership.metrics
        self._page = membership.page
        self._saving_clock = membership.saving_clock
        self._due = due
        self._schedule = due.schedule
        self._saves = saves
        self._progress = saves.progress
        self._pace = saves.pace
        self._totals = totals
        self._show_at_ns = 0

    def beat(self) -> int:
        """Give a sign of life; return its time (time.monotonic_ns)."""
        return beat(self._page)

    def poll(self) -> None:
        """Do as at any safe point, in an evaluation; raises as ``reach`` does."""
        self.reach()

    def reach(self) -> None:
        """Give a sign of life, and do what is due.

        Raises:
            TrainingStopped: A stop was requested, and the state is saved or being saved.
            TrainingRefused: The state cannot be saved; the reason has been printed.
        """
        page, schedule, now = self._page, self._schedule, monotonic_ns()
        page[HEARTBEAT] = now
        page[SAFE_POINTS] += 1
        if (
            now >= self._show_at_ns
            or page[STOP_REQUEST]
            or page[CHECKPOINT_REQUESTS] != self._due.served_requests
            or now >= schedule.next_time_ns
            or now >= self._pace.next_ns
            or self._progress.step >= schedule.next_step
            or self._progress.epoch >= schedule.next_epoch
        ):
            self._attend(now)

    def _attend(self, now_ns: int) -> None:
        with refusing():
            if now_ns >= self._show_at_ns and not self._due.stop_wanted:
                self._show_at_ns = now_ns + SHOW_METRICS_NS
                self._totals.refresh()
                self._backend.report_metrics(self._progress.metric_values())
                self._metrics.flush()
            with self._saving_clock:
                self._saves.attend(now_ns)
