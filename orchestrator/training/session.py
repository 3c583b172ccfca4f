"""The session: what a training script talks to (docs/process-contract.md, README)."""

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.reading import Checkpoint
from orchestrator.durable import write_json
from orchestrator.errors import CheckpointWriteError, ConfigError
from orchestrator.exitcodes import ExitStatus
from orchestrator.journal import JournalEvent, utc_now
from orchestrator.page import Field, Phase
from orchestrator.training.course import Course
from orchestrator.training.ending import describe, refusing, say, status_of
from orchestrator.training.home import Home
from orchestrator.training.restoring import Restored, read_classic, read_snapshot, read_state
from orchestrator.training.saving import Saver, patient_retrying
from orchestrator.training.schedule import Schedule
from orchestrator.training.shield import WorkerShield
from orchestrator.training.standalone import Standalone
from orchestrator.training.state import Progress, Registry
from orchestrator.training.stop import SignalFlags, TrainingStopped
from orchestrator.training.supervised import Supervised
from orchestrator.wire import SOCKET_VARIABLE

SHOW_METRICS_NS = 1_000_000_000
# How long the loop waits for the checkpoint before the last, whose slot it needs.
SLOT_WAIT_SECONDS = 60.0
# A checkpoint that takes longer than this to become durable is taken for lost.
WRITE_WAIT_SECONDS = 1800.0

# Plain integers: the hot path looks them up at every step.
STEP = int(Field.STEP)
PHASE = int(Field.PHASE)
HEARTBEAT = int(Field.HEARTBEAT_NS)
SAFE_POINTS = int(Field.SAFE_POINTS)
STOP_REQUEST = int(Field.STOP_REQUEST)
CHECKPOINT_REQUESTS = int(Field.CHECKPOINT_REQUESTS)
TRAIN = int(Phase.TRAIN)


class Session:
    """One training run, as a context manager around the training loop.

    ``session.state`` is a dict of plain values that is saved and restored with the rest.
    """

    def __init__(
        self,
        *,
        run_dir: str | Path | None = None,
        start_from: str | Path | None = None,
        **objects: Any,
    ) -> None:
        """Register ``objects``: each has state_dict() and load_state_dict(), its name is its key.

        ``run_dir`` is where the run lives when no supervisor says it (default: runs/<script>).
        ``start_from`` is a file in the classic form {'epoch', 'model_state_dict',
        'optimizer_state_dict', 'loss'} that a run without checkpoints of its own begins with.
        """
        self.state: dict[str, Any] = {}
        self.resumed_from: Path | None = None
        self._run_dir = Path(run_dir) if run_dir is not None else None
        self._start_from = Path(start_from) if start_from is not None else None
        self._registry = Registry()
        with refusing():
            self._registry.add(objects)
        self._course = Course(self._registry, self.state, torch.initial_seed())
        self._entered = False

    # --- entering and leaving ----------------------------------------------------------------

    def __enter__(self) -> Self:
        """Join or open the run, restore the newest valid checkpoint, watch for signals.

        Raises TrainingRefused, after printing the reason, when that is not possible.
        """
        with refusing():
            if os.environ.get("WORLD_SIZE", "").strip() not in ("", "1"):
                raise ConfigError(
                    "cannot train with several processes yet: WORLD_SIZE is "
                    f"{os.environ['WORLD_SIZE']}; start one process per run"
                )
            self._home: Home = (
                Supervised() if SOCKET_VARIABLE in os.environ else Standalone(self._run_dir)
            )
            self._page = self._home.page.values
            self._signals = SignalFlags(self._page, self._home.supervised)
            self._shield = WorkerShield()
            self._signals.install()
            self._shield.install()
            self._saver = Saver(self._home, self._registry)
            try:
                self._begin()
            except BaseException as error:
                self._leave(error)
                raise
        return self

    def _begin(self) -> None:
        self._emergency: Future[Checkpoint] | None = None
        self._schedule = Schedule(self._home.every)
        self._course = Course(self._registry, self.state, torch.initial_seed())
        self._served_requests = 0
        self._show_at_ns = 0
        self._page[PHASE] = Phase.RESTORE
        if self._resume_newest():
            self._schedule.begun(self.global_step, self.epoch)
        elif self._start_from is not None:
            self._start(self._start_from)
        self._steps_at_start = self.global_step
        self._page[Field.STEP] = self.global_step
        self._page[Field.EPOCH] = self.epoch
        self._page[PHASE] = Phase.TRAIN
        self._entered = True

    def _resume_newest(self) -> bool:
        snapshot = self._home.snapshot_to_resume()
        checkpoint = None if snapshot else self._home.checkpoint_to_resume()
        try:
            if snapshot is not None:
                # Its checkpoint is being written, or was.
                name = f"step-{snapshot.manifest.step:012d}"
                restored, source = read_snapshot(snapshot), self._home.run.checkpoints / name
            elif checkpoint is not None:
                restored, source = read_state(checkpoint), checkpoint.path
            else:
                return False
        except RuntimeError:
            self._home.reject()
            raise
        self._take_over(restored, source)
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Mark the run complete, or record how it ended; then end loader workers."""
        try:
            if error is None:
                with refusing():
                    self._complete()
        except BaseException as failure:
            error = failure
            raise
        finally:
            self._entered = False
            self._leave(error)

    def _complete(self) -> None:
        """Publish the final checkpoint and then the mark that training is complete.

        After weeks of training a disk that is full just now is worth a wait of some minutes.
        """
        if self._is_finished():
            say(
                f"training is complete already (step {self.global_step}); to train further, raise "
                "the script's number of epochs or steps"
            )
            if (self._home.run.done() or {}).get("command") == self._home.command:
                return
        else:
            for attempt in patient_retrying(self._stop_wanted):
                with attempt:
                    self._save_now(Reason.FINAL)
        for attempt in patient_retrying(self._stop_wanted):
            with attempt:
                self._mark_complete()

    def _mark_complete(self) -> None:
        done = {
            "step": self.global_step,
            "epoch": self.epoch,
            "time": utc_now(),
            "command": self._home.command,
        }
        try:
            write_json(self._home.run.done_file, done)
        except OSError as cause:
            error = CheckpointWriteError(self.global_step, cause)
            self._home.failed(error)
            raise error from cause

    def _is_finished(self) -> bool:
        """Whether this is a finished run to which nothing was added."""
        return self._steps_at_start == self.global_step and self._home.run.done_file.exists()

    def _stop_wanted(self) -> bool:
        return bool(self._page[STOP_REQUEST])

    def _leave(self, error: BaseException | None) -> None:
        self._shield.restore()
        if isinstance(error, TrainingStopped) and self._emergency is not None:
            # It was being written while the workers ended.
            error.settle(self._outcome(self._emergency))
        if error is None or isinstance(error, TrainingStopped):
            self._page[PHASE] = Phase.DONE
        status = ExitStatus.COMPLETE if error is None else status_of(error)
        self._saver.close()
        self._home.leave(status, None if error is None or status is not None else describe(error))
        self._signals.restore()

    # --- what scripts read and register ------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self._course.progress.epoch

    @property
    def exactness(self) -> str | None:
        """EXACT, or APPROXIMATE and why; None in a run that was not resumed."""
        course = self._course
        if course.problems is None:
            return None
        problems = course.problems + course.data.problems
        return f"APPROXIMATE: {'; '.join(problems)}" if problems else "EXACT"

    @property
    def global_step(self) -> int:
        """Completed steps."""
        return self._course.progress.step

    def register(self, **objects: Any) -> None:
        """Register more objects; before the ``with`` block, so that they are restored with it."""
        with refusing():
            if self._entered:
                raise ConfigError(
                    f"cannot register {', '.join(objects)} inside the `with` block: the state is "
                    "restored when it is entered; register before it"
                )
            self._registry.add(objects)

    # --- the loop ----------------------------------------------------------------------------

    def epochs(self, total: int) -> Iterator[int]:
        """The epochs still to do of ``total``, counted from 0; between two is a safe point."""
        course = self._course
        while self.epoch < total:
            with refusing():
                course.begin_epoch()
            yield self.epoch
            course.end_epoch()
            self._page[Field.EPOCH] = self.epoch
            self._safe_point()

    def steps(self, total: int) -> Iterator[int]:
        """The steps still to do of ``total``, counted from 0, for loops without epochs."""
        while (step := self.global_step) < total:
            with refusing():
                self._course.begin_step()
            yield step
            if self.global_step == step:
                raise RuntimeError("session.steps() needs one session.step() in each round")
        self._course.end_steps()

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of ``loader`` that this epoch has still to do."""
        course = self._course
        with refusing():
            course.begin_pass()
        used_up = yield from course.data.batches(loader, self.epoch)
        if used_up:
            self._page[PHASE] = Phase.EVALUATE
            with refusing():
                course.end_pass()

    def step(self, **metrics: Any) -> None:
        """One step is done: a safe point. ``metrics`` are single numbers or tensors of one element.

        Raises TrainingStopped when a stop was asked for and the state has been saved.
        """
        progress = self._course.progress
        if progress.step == self._steps_at_start:
            self._home.run.done_file.unlink(missing_ok=True)
        self._course.end_step(metrics)
        self._page[STEP] = progress.step
        self._page[PHASE] = TRAIN
        self._safe_point()

    def poll(self, **metrics: Any) -> None:
        """A safe point without a step, for evaluation and warm-up.

        After an epoch's batches, what is saved is the state at their end, and a resumed run does
        everything after it again: the evaluation, a scheduler's step. Between a batch and its step
        nothing is saved, since the state belongs to neither.
        """
        self._course.poll(metrics)
        self._page[PHASE] = Phase.EVALUATE
        try:
            self._safe_point()
        finally:
            self._course.end_poll()

    def checkpoint(self) -> Path | None:
        """Save now; the new checkpoint's directory, None if the disk refused."""
        with refusing():
            if self._course.data.mid_batch:
                raise ConfigError(
                    "cannot save between a batch and its step: call session.checkpoint() after "
                    "session.step()"
                )
            try:
                return self._save_now(Reason.REQUESTED).path
            except CheckpointWriteError:
                return None

    # --- safe points -------------------------------------------------------------------------

    def _safe_point(self) -> None:
        page, progress, now = self._page, self._course.progress, time.monotonic_ns()
        page[HEARTBEAT] = now
        page[SAFE_POINTS] += 1
        if (
            now >= self._show_at_ns
            or page[STOP_REQUEST]
            or page[CHECKPOINT_REQUESTS] != self._served_requests
            or now >= self._schedule.next_time_ns
            or now >= self._saver.pace.next_ns
            or progress.step >= self._schedule.next_step
            or progress.epoch >= self._schedule.next_epoch
        ):
            self._attend(now)

    def _attend(self, now: int) -> None:
        """Do what is due at this safe point; what cannot be done yet stays due."""
        with refusing():
            if now >= self._show_at_ns and not self._page[STOP_REQUEST]:
                self._show_at_ns = now + SHOW_METRICS_NS
                self._home.show(self._course.progress.metric_values())
            if (ended := self._saver.ended()) is not None:
                self._note_end(ended)
            if self._page[STOP_REQUEST]:
                if self._course.is_resumable():
                    self._stop()
                return
            requests = self._page[CHECKPOINT_REQUESTS]
            requested = requests != self._served_requests
            due = requested or self._schedule.is_due(self.global_step, self.epoch)
            # For a place that the user named the loop waits; a time is only about right anyway.
            waits = requested or self._schedule.is_counted
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
                self._saver.snapshot(*self._course.content(Reason.PERIODIC))

    def _give_up_waiting(self) -> None:
        """The writes before do not end, be it for a dead disk or a supervisor that is stopped."""
        cause = OSError(errno.ETIMEDOUT, "the checkpoints before it are still being written")
        self._home.failed(CheckpointWriteError(self.global_step, cause))
        self._schedule.failed()

    def _note_end(self, ended: Future[Checkpoint]) -> None:
        if ended.exception() is not None:
            delay = self._schedule.failed()
            if not self._stop_wanted():
                say(f"training goes on; the next save is tried in {delay:.0f} s")
            return
        self._schedule.succeeded()
        if not ended.result().manifest.healthy:
            _say_unhealthy(ended.result())

    def _stop(self) -> None:
        source = self._signals.source or "request"
        self._home.tell(JournalEvent.STOP_NOTICED, step=self.global_step, source=source)
        self._emergency = self._save(Reason.EMERGENCY, self._deadline())
        raise TrainingStopped(ExitStatus.STOPPED_SAVED)

    def _deadline(self) -> float:
        """Until when (time.monotonic) the state has to be saved for a stop."""
        set_by_supervisor = self._page[Field.STOP_DEADLINE_NS] / 1e9
        return set_by_supervisor or time.monotonic() + WRITE_WAIT_SECONDS

    def _outcome(self, written: Future[Checkpoint]) -> ExitStatus:
        """The status of a stop whose checkpoint this is, once it is known."""
        try:
            checkpoint = written.result(timeout=max(0.0, self._deadline() - time.monotonic()))
        except (CheckpointWriteError, TimeoutError):
            return ExitStatus.STOPPED_UNSAVED
        if checkpoint.manifest.healthy:
            return ExitStatus.STOPPED_SAVED
        # The next run resumes from an older one.
        _say_unhealthy(checkpoint)
        return ExitStatus.STOPPED_UNSAVED

    def _save_now(self, reason: Reason) -> Checkpoint:
        """Save, and wait until the checkpoint is durable. Raises CheckpointWriteError."""
        deadline = time.monotonic() + WRITE_WAIT_SECONDS
        with self._phase_save():
            written = self._save(reason, deadline)
            assert written is not None
            try:
                return written.result(timeout=max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                cause = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
                raise CheckpointWriteError(self.global_step, cause) from None

    def _save(self, reason: Reason, deadline: float | None = None) -> Future[Checkpoint] | None:
        """Have the state become a checkpoint; None where that cannot begin now.

        Raises UnstorableError and ConfigError for values that cannot be kept.
        """
        with self._phase_save():
            written = self._saver.save(*self._course.content(reason), reason, deadline)
        if written is not None:
            self._course.progress.refuses_bad_metrics = False
            self._schedule.begun(self.global_step, self.epoch, self._saver.least_interval_seconds)
        return written

    @contextlib.contextmanager
    def _phase_save(self) -> Iterator[None]:
        before = self._page[PHASE]
        self._page[PHASE] = Phase.SAVE
        try:
            yield
        finally:
            self._page[PHASE] = before

    # --- restoring ---------------------------------------------------------------------------

    def _take_over(self, restored: Restored, source: Path) -> None:
        self._registry.restore(restored.content, source, borrowed=True)
        self._course.take_over(restored)
        self.resumed_from = source
        self._home.tell(
            JournalEvent.RESUMED,
            path=str(source),
            step=self.global_step,
            from_memory=restored.in_memory,
            exactness=self.exactness,
        )

    def _start(self, source: Path) -> None:
        content = read_classic(source)
        left_alone = self._registry.restore_classic(content, source)
        if left_alone:
            say(f"{source} has no state of {', '.join(left_alone)}: left as it is")
        self._course.progress = Progress(content["epoch"], content["step"])


def _say_unhealthy(checkpoint: Checkpoint) -> None:
    say(
        f"step {checkpoint.manifest.step} has weights that are not finite: its checkpoint is kept, "
        "but nothing will resume from it"
    )
