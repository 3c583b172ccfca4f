"""How a session saves: at safe points, for a stop, on request, and at its end."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import NoReturn

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Reason
from orchestrator.errors import CheckpointWriteError, FreedStorageError
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import Field, Phase
from orchestrator.pace.snapshot_pace import SnapshotPace
from orchestrator.training.exits import print_message
from orchestrator.training.loop.due_saves import DueSaves, print_unhealthy
from orchestrator.training.loop.loop_state import LoopState, StateToSave
from orchestrator.training.loop.mistakes import LoopMistakes
from orchestrator.training.runtime.backend import Report
from orchestrator.training.runtime.local_writer import WRITE_WAIT_SECONDS, report_failure
from orchestrator.training.runtime.membership import RunMembership
from orchestrator.training.saving.saver import Saver
from orchestrator.training.state.progress import Progress
from orchestrator.training.stop import TrainingStopped

# How long the loop waits for the checkpoint before the last, whose slot it needs.
SLOT_WAIT_SECONDS = 60.0
# How long to wait for a moment at which every tensor has its memory.
MISSING_RETRY_NS = 1_000_000_000


class SessionSaves:
    """The save strategy of a session.

    Attributes:
        progress: The counters of the run.
        pace: When the next snapshot in memory is due.
        saver: Brings the state into snapshots and checkpoints.
    """

    def __init__(
        self,
        membership: RunMembership,
        due: DueSaves,
        loop_state: LoopState,
        saver: Saver,
        mistakes: LoopMistakes,
    ) -> None:
        self.progress: Progress = loop_state.progress
        self.pace: SnapshotPace = saver.pace
        self._membership = membership
        self._page = membership.page
        self._due = due
        self._loop_state = loop_state
        self.saver = saver
        self._mistakes = mistakes
        self._has_said_missing = False
        self._missing = FreedStorageError("")
        self._emergency: Future[Checkpoint] | None = None
        self._reported_exactness = loop_state.exactness.text()

    def attend(self, now_ns: int) -> None:
        """Do what is due at a safe point; what cannot be done yet stays due.

        Raises:
            TrainingStopped: A stop was requested, and the state is being saved.
        """
        self._report_lost_exactness()
        if (ended := self.saver.next_ended()) is not None:
            self._due.record_end(ended)
        if not self._due.stop_wanted:
            self._save_what_is_due(now_ns)
        elif self._loop_state.is_resumable():
            self._stop()

    def _save_what_is_due(self, now_ns: int) -> None:
        requests, requested = self._due.requests, self._due.is_requested
        # For a place that the user named the loop waits; a time is only approximate anyway.
        waits = requested or self._due.schedule.is_counted
        if self._due.is_due(self.progress) and (waits or self.saver.can_save):
            deadline = time.monotonic() + SLOT_WAIT_SECONDS if waits else None
            if not self._loop_state.is_resumable():
                return
            reason = Reason.REQUESTED if requested else Reason.PERIODIC
            if self._save(reason, deadline) is not None:
                self._due.served_requests = requests
            elif waits:
                self._due.served_requests = requests
                self._give_up_waiting()
        elif self.saver.is_snapshot_due(now_ns) and self._loop_state.is_resumable():
            self._membership.metrics.flush()
            began = time.perf_counter()
            if (saved := self._state_to_save(Reason.PERIODIC)) is not None:
                self.saver.snapshot(saved, time.perf_counter() - began)
                self.progress.refuses_bad_values = False
            else:
                self.pace.next_ns = now_ns + MISSING_RETRY_NS
        elif not self.saver.has_proved_loadable and self._loop_state.is_resumable():
            # Without snapshots the first save may be many minutes away, and with it a refusal.
            self.saver.prove_loadable(self._loop_state.state_to_save(Reason.PERIODIC).state)

    def _report_lost_exactness(self) -> None:
        """Report what has come up since the run was resumed, such as on the way back."""
        exactness = self._loop_state.exactness.text()
        if exactness != self._reported_exactness:
            self._reported_exactness = exactness
            step = self.progress.step
            print_message(f"at step {step} the resumed run turns out to be {exactness}")
            backend = self._membership.backend
            backend.report(Report.EXACTNESS_LOST, step=step, exactness=exactness)

    def _give_up_waiting(self) -> None:
        """Report a failed save: the writes before it do not end.

        The disk may be dead, or the supervisor stopped.
        """
        cause = OSError(errno.ETIMEDOUT, "the checkpoints before it are still being written")
        report_failure(self._membership.backend, CheckpointWriteError(self.progress.step, cause))
        self._due.schedule.record_failure()

    def close(self) -> None:
        """Wait for the snapshot under way and give the memory back."""
        self.saver.close()

    # --- a stop ------------------------------------------------------------------------------

    def _stop(self) -> NoReturn:
        self._membership.report_stop(self.progress.step)
        self._emergency = self._save(Reason.EMERGENCY, self._stop_deadline())
        self._raise_stopped()

    def _raise_stopped(self) -> NoReturn:
        raise TrainingStopped(ExitStatus.STOPPED_SAVED)

    def _stop_deadline(self) -> float:
        """Return until when (time.monotonic) the state has to be saved for a stop."""
        set_by_supervisor = self._page[Field.STOP_DEADLINE_NS] / 1e9
        return set_by_supervisor or time.monotonic() + WRITE_WAIT_SECONDS

    def wait_for_emergency(self, stopped: TrainingStopped) -> None:
        """Wait for the checkpoint of a stop, and give ``stopped`` the status it leads to."""
        if self._emergency is not None:
            with self._membership.saving_clock:
                self.saver.hurry()
                stopped.set_status(self._status_of(self._emergency))

    def _status_of(self, emergency: Future[Checkpoint]) -> ExitStatus:
        remaining = max(0.0, self._stop_deadline() - time.monotonic())
        try:
            checkpoint = emergency.result(timeout=remaining)
        except (CheckpointWriteError, TimeoutError):
            return ExitStatus.STOPPED_UNSAVED
        if checkpoint.manifest.healthy:
            return ExitStatus.STOPPED_SAVED
        # The next run resumes from an older one.
        print_unhealthy(checkpoint)
        return ExitStatus.STOPPED_UNSAVED

    # --- saving ------------------------------------------------------------------------------

    def save_now(self, reason: Reason) -> Checkpoint:
        """Save, and wait until the checkpoint is durable.

        Raises:
            CheckpointWriteError: The disk refused it, or did not answer in time.
            UnstorableError: A value has no form that can be loaded safely.
            ConfigError: A metric is not a number, in a run that has saved nothing yet.
        """
        deadline = time.monotonic() + WRITE_WAIT_SECONDS
        with self._membership.saving_clock, self._phase_save():
            written = self._save(reason, deadline)
            assert written is not None
            return self._wait_until_durable(written, deadline)

    def _wait_until_durable(self, written: Future[Checkpoint], deadline: float) -> Checkpoint:
        self.saver.hurry()
        try:
            return written.result(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            cause = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            raise CheckpointWriteError(self.progress.step, cause) from None

    def _save(self, reason: Reason, deadline: float | None = None) -> Future[Checkpoint] | None:
        """Begin to save; None where that is not possible now."""
        self._report_lost_exactness()
        self._membership.metrics.flush()
        with self._phase_save():
            saved = self._state_to_save(reason)
            if saved is None:
                return self._nothing_to_save()
            written = self.saver.save(saved, reason, deadline)
        self._mistakes.check(self._loop_state.registered(), self.progress.step)
        if written is not None:
            self.progress.refuses_bad_values = False
            least_seconds = self.saver.least_interval_seconds
            self._due.schedule.begin(self.progress.step, self.progress.epoch, least_seconds)
        return written

    def _state_to_save(self, reason: Reason) -> StateToSave | None:
        """Return the state; None, said once, where a tensor has no memory at this moment.

        Raises:
            UnstorableError: Part of it cannot be stored, in a run that has saved nothing yet.
        """
        try:
            return self._loop_state.state_to_save(reason)
        except FreedStorageError as error:
            if self.progress.refuses_bad_values or reason is Reason.FINAL:
                raise
            self._missing = error
            if not self._has_said_missing:
                self._has_said_missing = True
                print_message(f"{error}. Nothing is saved at step {self.progress.step}")
            return None

    def _nothing_to_save(self) -> Future[Checkpoint]:
        """Return a failed save: a tensor has no memory, and what was saved before stays."""
        cause = OSError(errno.EFAULT, f"{self._missing.where} has no storage at this moment")
        error = CheckpointWriteError(self.progress.step, cause, has_older=True)
        report_failure(self._membership.backend, error)
        self._due.record_failure()
        failed: Future[Checkpoint] = Future()
        failed.set_exception(error)
        return failed

    @contextlib.contextmanager
    def _phase_save(self) -> Iterator[None]:
        before = self._page[Field.PHASE]
        self._page[Field.PHASE] = Phase.SAVE
        try:
            yield
        finally:
            self._page[Field.PHASE] = before
