"""What a session does at a safe point: show, save, snapshot, stop."""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Reason
from orchestrator.errors import CheckpointWriteError
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import Field, Phase
from orchestrator.rundir.journal import JournalEvent
from orchestrator.training.exits import print_message, refusing
from orchestrator.training.loop.loop_state import LoopState
from orchestrator.training.loop.schedule import Schedule
from orchestrator.training.runtime.backend import RunBackend
from orchestrator.training.runtime.metrics import MetricsFile
from orchestrator.training.saving.saver import Saver
from orchestrator.training.stop import TrainingStopped

SHOW_METRICS_NS = 1_000_000_000
# How long the loop waits for the checkpoint before the last, whose slot it needs.
SLOT_WAIT_SECONDS = 60.0
# A checkpoint that takes longer than this to become durable is taken for lost.
WRITE_WAIT_SECONDS = 1800.0

# Plain integers: the hot path looks them up at every step.
PHASE = int(Field.PHASE)
HEARTBEAT = int(Field.HEARTBEAT_NS)
SAFE_POINTS = int(Field.SAFE_POINTS)
STOP_REQUEST = int(Field.STOP_REQUEST)
CHECKPOINT_REQUESTS = int(Field.CHECKPOINT_REQUESTS)


class SafePoints:
    """The safe points of one session, and the saves that are made at them or on demand."""

    def __init__(
        self,
        home: RunBackend,
        course: LoopState,
        saver: Saver,
        metrics: MetricsFile,
        stop_source: Callable[[], str | None],
    ) -> None:
        """``stop_source`` says who asked for a stop, as far as that is known."""
        self.schedule = Schedule(home.every)
        self.emergency: Future[Checkpoint] | None = None
        """The checkpoint of a stop, which may still be being written."""
        self._home = home
        self._page = home.page.values
        self._course = course
        self._saver = saver
        self._metrics = metrics
        self._stop_source = stop_source
        self._served_requests = 0
        self._show_at_ns = 0
        self._told_exactness = course.exactness

    @property
    def stop_wanted(self) -> bool:
        """Whether somebody wants the run to stop."""
        return bool(self._page[STOP_REQUEST])

    def reach(self) -> None:
        """The loop is at a safe point. Raises TrainingStopped."""
        page, progress, now = self._page, self._course.progress, time.monotonic_ns()
        page[HEARTBEAT] = now
        page[SAFE_POINTS] += 1
        if (
            now >= self._show_at_ns
            or page[STOP_REQUEST]
            or page[CHECKPOINT_REQUESTS] != self._served_requests
            or now >= self.schedule.next_time_ns
            or now >= self._saver.pace.next_ns
            or progress.step >= self.schedule.next_step
            or progress.epoch >= self.schedule.next_epoch
        ):
            self._attend(now)

    def _attend(self, now: int) -> None:
        """Do what is due at this safe point; what cannot be done yet stays due."""
        with refusing():
            if now >= self._show_at_ns and not self.stop_wanted:
                self._show_at_ns = now + SHOW_METRICS_NS
                self._home.show(self._course.progress.metric_values())
                self._metrics.flush()
            self._tell_lost_exactness()
            if (ended := self._saver.ended()) is not None:
                self._note_end(ended)
            if self.stop_wanted:
                if self._course.is_resumable():
                    self._stop()
                return
            self._save_what_is_due(now)

    def _save_what_is_due(self, now: int) -> None:
        progress = self._course.progress
        requests = self._page[CHECKPOINT_REQUESTS]
        requested = requests != self._served_requests
        due = requested or self.schedule.is_due(progress.step, progress.epoch)
        # For a place that the user named the loop waits; a time is only about right anyway.
        waits = requested or self.schedule.is_counted
        if due and (waits or self._saver.can_save):
            reason = Reason.REQUESTED if requested else Reason.PERIODIC
            deadline = time.monotonic() + SLOT_WAIT_SECONDS if waits else None
            if not self._course.is_resumable():
                return
            if self._save(reason, deadline) is not None:
                self._served_requests = requests
            elif waits:
                self._served_requests = requests
                self._give_up_waiting()
        elif self._saver.is_snapshot_due(now) and self._course.is_resumable():
            self._metrics.flush()
            self._saver.snapshot(self._course.state_to_save(Reason.PERIODIC))

    def _tell_lost_exactness(self) -> None:
        """Say what has come up since the run was resumed, on the way to where it was cut, say."""
        exactness = self._course.exactness
        if exactness != self._told_exactness:
            self._told_exactness = exactness
            step = self._course.progress.step
            print_message(f"at step {step} the resumed run turns out to be {exactness}")
            self._home.tell(JournalEvent.EXACTNESS_LOST, step=step, exactness=exactness)

    def _give_up_waiting(self) -> None:
        """The writes before do not end, be it for a dead disk or a supervisor that is stopped."""
        cause = OSError(errno.ETIMEDOUT, "the checkpoints before it are still being written")
        self._home.failed(CheckpointWriteError(self._course.progress.step, cause))
        self.schedule.failed()

    def _note_end(self, ended: Future[Checkpoint]) -> None:
        if ended.exception() is not None:
            delay = self.schedule.failed()
            if not self.stop_wanted:
                print_message(f"training goes on; the next save is tried in {delay:.0f} s")
            return
        self.schedule.succeeded()
        if not ended.result().manifest.healthy:
            say_unhealthy(ended.result())

    # --- stopping ----------------------------------------------------------------------------

    def _stop(self) -> None:
        source, step = self._stop_source() or "request", self._course.progress.step
        self._home.tell(JournalEvent.STOP_NOTICED, step=step, source=source)
        self.emergency = self._save(Reason.EMERGENCY, self._deadline())
        raise TrainingStopped(ExitStatus.STOPPED_SAVED)

    def _deadline(self) -> float:
        """Until when (time.monotonic) the state has to be saved for a stop."""
        set_by_supervisor = self._page[Field.STOP_DEADLINE_NS] / 1e9
        return set_by_supervisor or time.monotonic() + WRITE_WAIT_SECONDS

    def outcome(self, written: Future[Checkpoint]) -> ExitStatus:
        """The status of a stop whose checkpoint this is, once it is known."""
        try:
            checkpoint = written.result(timeout=max(0.0, self._deadline() - time.monotonic()))
        except (CheckpointWriteError, TimeoutError):
            return ExitStatus.STOPPED_UNSAVED
        if checkpoint.manifest.healthy:
            return ExitStatus.STOPPED_SAVED
        # The next run resumes from an older one.
        say_unhealthy(checkpoint)
        return ExitStatus.STOPPED_UNSAVED

    # --- saving ------------------------------------------------------------------------------

    def save_now(self, reason: Reason) -> Checkpoint:
        """Save, and wait until the checkpoint is durable. Raises CheckpointWriteError."""
        deadline = time.monotonic() + WRITE_WAIT_SECONDS
        with self._phase_save():
            written = self._save(reason, deadline)
            assert written is not None
            try:
                return written.result(timeout=max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                cause = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
                raise CheckpointWriteError(self._course.progress.step, cause) from None

    def _save(self, reason: Reason, deadline: float | None = None) -> Future[Checkpoint] | None:
        """Have the state become a checkpoint; None where that cannot begin now.

        Raises UnstorableError and ConfigError for values that cannot be kept.
        """
        progress = self._course.progress
        self._tell_lost_exactness()
        self._metrics.flush()
        with self._phase_save():
            written = self._saver.save(self._course.state_to_save(reason), reason, deadline)
        if written is not None:
            progress.refuses_bad_metrics = False
            least_seconds = self._saver.least_interval_seconds
            self.schedule.begun(progress.step, progress.epoch, least_seconds)
        return written

    @contextlib.contextmanager
    def _phase_save(self) -> Iterator[None]:
        before = self._page[PHASE]
        self._page[PHASE] = Phase.SAVE
        try:
            yield
        finally:
            self._page[PHASE] = before


def say_unhealthy(checkpoint: Checkpoint) -> None:
    """Say that nothing will resume from it."""
    print_message(
        f"step {checkpoint.manifest.step} has weights that are not finite: its checkpoint is kept, "
        "but nothing will resume from it"
    )
