"""The session: what a training script talks to (docs/process-contract.md, README)."""

import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.reading import Checkpoint
from orchestrator.durable import write_json
from orchestrator.errors import (
    CheckpointInvalidError,
    CheckpointWriteError,
    ConfigError,
)
from orchestrator.exitcodes import ExitStatus
from orchestrator.journal import JournalEvent, utc_now
from orchestrator.page import Field, Phase
from orchestrator.training import rng
from orchestrator.training.data import DataPosition
from orchestrator.training.ending import describe, refusing, say, status_of
from orchestrator.training.home import Home
from orchestrator.training.place import Place
from orchestrator.training.plain import to_plain
from orchestrator.training.replay import ReplayPoint
from orchestrator.training.restoring import read_classic, read_state
from orchestrator.training.saving import Saver, Schedule, patient_retrying
from orchestrator.training.shield import WorkerShield
from orchestrator.training.standalone import Standalone
from orchestrator.training.state import Progress, Registry
from orchestrator.training.stop import SignalFlags, TrainingStopped
from orchestrator.training.supervised import Supervised
from orchestrator.wire import SOCKET_VARIABLE

SHOW_METRICS_NS = 1_000_000_000

# Plain integers: the hot path looks them up at every step.
STEP = int(Field.STEP)
HEARTBEAT = int(Field.HEARTBEAT_NS)
SAFE_POINTS = int(Field.SAFE_POINTS)
STOP_REQUEST = int(Field.STOP_REQUEST)
CHECKPOINT_REQUESTS = int(Field.CHECKPOINT_REQUESTS)


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
        self._problems: list[str] | None = None
        self._run_dir = Path(run_dir) if run_dir is not None else None
        self._start_from = Path(start_from) if start_from is not None else None
        self._registry = Registry()
        with refusing():
            self._registry.add(objects)
        self._progress = Progress()
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
            try:
                self._begin()
            except BaseException as error:
                self._leave(status_of(error), None)
                raise
        return self

    def _begin(self) -> None:
        self._saver = Saver(self._home.store)
        self._schedule = Schedule(self._home.every)
        self._data = DataPosition(torch.initial_seed())
        self._place = Place()
        self._replay_point: ReplayPoint | None = None
        self._polling = False
        self._served_requests = 0
        self._show_at_ns = 0
        self._page[Field.PHASE] = Phase.RESTORE
        checkpoint = self._resume_newest()
        if checkpoint is not None:
            self._schedule.saved(self.global_step, self.epoch)
        elif self._start_from is not None:
            self._start(self._start_from)
        self._steps_at_start = self.global_step
        self._page[Field.STEP] = self.global_step
        self._page[Field.EPOCH] = self.epoch
        self._page[Field.PHASE] = Phase.TRAIN
        self._entered = True

    def _resume_newest(self) -> Checkpoint | None:
        while (checkpoint := self._home.checkpoint_to_resume()) is not None:
            try:
                self._resume(checkpoint)
            except CheckpointInvalidError as error:
                if self._home.supervised:
                    raise
                try:
                    self._home.store.quarantine(checkpoint.path, error.reason)
                except OSError as problem:
                    raise ConfigError(
                        f"{error}; nor can it be moved to quarantine: {problem.strerror}; mend "
                        "that or move it away yourself, and run again"
                    ) from error
                say(f"{error}; it was moved to quarantine")
                continue
            return checkpoint
        return None

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
            status = ExitStatus.COMPLETE if error is None else status_of(error)
            described = None if error is None or status is not None else describe(error)
            self._leave(status, described)

    def _complete(self) -> None:
        """Publish the final checkpoint and then the mark that training is complete.

        After weeks of training a disk that is full just now is worth a wait of some minutes.
        """
        if not self._is_finished():
            for attempt in patient_retrying(self._report_failure, self._stop_wanted):
                with attempt:
                    checkpoint = self._publish(Reason.FINAL)
            self._home.published(checkpoint, None)
        elif (self._home.run.done() or {}).get("command") == self._home.command:
            return
        for attempt in patient_retrying(self._report_failure, self._stop_wanted):
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
        except OSError as error:
            raise CheckpointWriteError(self.global_step, error) from error

    def _is_finished(self) -> bool:
        """Whether this is a finished run to which nothing was added."""
        return self._steps_at_start == self.global_step and self._home.run.done_file.exists()

    def _stop_wanted(self) -> bool:
        return bool(self._page[STOP_REQUEST])

    def _leave(self, status: ExitStatus | None, described: dict[str, Any] | None) -> None:
        self._page[Field.PHASE] = Phase.DONE
        self._shield.restore()
        self._home.leave(status, described)
        self._signals.restore()

    # --- what scripts read and register ------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self._progress.epoch

    @property
    def exactness(self) -> str | None:
        """EXACT, or APPROXIMATE and why; None in a run that was not resumed."""
        if self._problems is None:
            return None
        problems = self._problems + self._data.problems
        return f"APPROXIMATE: {'; '.join(problems)}" if problems else "EXACT"

    @property
    def global_step(self) -> int:
        """Completed steps."""
        return self._progress.step

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
        progress = self._progress
        while progress.epoch < total:
            self._place = Place(epoch_began_at_step=progress.step)
            self._remember_replay_point()
            yield progress.epoch
            progress.epoch += 1
            self._page[Field.EPOCH] = progress.epoch
            self._data.begin_epoch()
            self._place = Place()
            self._replay_point = None
            self._safe_point()

    def steps(self, total: int) -> Iterator[int]:
        """The steps still to do of ``total``, counted from 0, for loops without epochs."""
        while (step := self._progress.step) < total:
            self._place = Place(open_step=step)
            yield step
            if self._progress.step == step:
                raise RuntimeError("session.steps() needs one session.step() in each round")
        self._place = Place()

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of ``loader`` that this epoch has still to do."""
        self._place.has_batches = True
        used_up = yield from self._data.batches(loader, self._progress.epoch)
        if used_up and not self._data.mid_batch:
            self._remember_replay_point()

    def step(self, **metrics: Any) -> None:
        """One step is done: a safe point. ``metrics`` are single numbers or tensors of one element.

        Raises TrainingStopped when a stop was asked for and the state has been saved.
        """
        progress, page = self._progress, self._page
        if progress.step == self._steps_at_start:
            self._home.run.done_file.unlink(missing_ok=True)
        progress.step += 1
        progress.note(metrics)
        self._data.consume()
        self._replay_point = None
        page[STEP] = progress.step
        self._safe_point()

    def poll(self, **metrics: Any) -> None:
        """A safe point without a step, for evaluation and warm-up.

        After an epoch's batches, what is saved is the state at their end, and a resumed run does
        everything after it again: the evaluation, a scheduler's step. Between a batch and its step
        nothing is saved, since the state belongs to neither.
        """
        self._progress.note(metrics)
        self._polling = True
        try:
            self._safe_point()
        finally:
            self._polling = False

    def checkpoint(self) -> Path | None:
        """Save now; the new checkpoint's directory, None if the disk refused."""
        with refusing():
            if self._data.mid_batch:
                raise ConfigError(
                    "cannot save between a batch and its step: call session.checkpoint() after "
                    "session.step()"
                )
            return self._save(Reason.REQUESTED)

    # --- safe points -------------------------------------------------------------------------

    def _safe_point(self) -> None:
        page, now = self._page, time.monotonic_ns()
        page[HEARTBEAT] = now
        page[SAFE_POINTS] += 1
        if (
            now >= self._show_at_ns
            or page[STOP_REQUEST]
            or page[CHECKPOINT_REQUESTS] != self._served_requests
            or now >= self._schedule.next_time_ns
            or self._progress.step >= self._schedule.next_step
            or self._progress.epoch >= self._schedule.next_epoch
        ):
            self._attend(now)

    def _attend(self, now: int) -> None:
        """Do what is due at this safe point."""
        with refusing():
            if now >= self._show_at_ns and not self._page[STOP_REQUEST]:
                self._show_at_ns = now + SHOW_METRICS_NS
                self._home.show(self._progress.metric_values())
            requests = self._page[CHECKPOINT_REQUESTS]
            stop = self._page[STOP_REQUEST]
            is_due = self._schedule.is_due(self.global_step, self.epoch)
            if not (stop or is_due or requests != self._served_requests):
                return
            if not self._is_resumable():
                return  # what is due stays due until the next safe point
            if stop:
                self._stop()
            if requests != self._served_requests:
                self._served_requests = requests
                self._save(Reason.REQUESTED)
            else:
                self._save(Reason.PERIODIC)

    def _stop(self) -> None:
        source = self._signals.source or "request"
        self._home.tell(JournalEvent.STOP_NOTICED, step=self.global_step, source=source)
        saved = self._save(Reason.EMERGENCY) is not None
        raise TrainingStopped(ExitStatus.STOPPED_SAVED if saved else ExitStatus.STOPPED_UNSAVED)

    def _save(self, reason: Reason) -> Path | None:
        """Publish the state; None when the disk refused, which is reported and tried again later.

        Raises UnstorableError and ConfigError for values that cannot be kept.
        """
        started = time.monotonic()
        try:
            checkpoint = self._publish(reason)
        except CheckpointWriteError as error:
            self._schedule.failed()
            self._report_failure(error)
            return None
        self._schedule.saved(self.global_step, self.epoch)
        self._home.published(checkpoint, round(time.monotonic() - started, 3))
        return checkpoint.path

    def _publish(self, reason: Reason) -> Checkpoint:
        self._page[Field.PHASE] = Phase.SAVE
        try:
            point = self._replay_point
            if point is not None and (reason is Reason.FINAL or not point.is_intact()):
                point = None
                self._place.was_changed = reason is not Reason.FINAL
            metrics = self._metrics(reason)
            state = self._capture(metrics) if point is None else point.state | metrics
            healthy = math.isfinite(metrics.get("loss", 0.0)) and self._registry.is_finite()
            checkpoint = self._saver.save(state, reason, metrics, healthy)
        finally:
            self._page[Field.PHASE] = Phase.TRAIN
        if not healthy:
            say(
                f"step {self.global_step} has non-finite values: its checkpoint is kept, but "
                "nothing will resume from it"
            )
        return checkpoint

    def _metrics(self, reason: Reason) -> dict[str, float]:
        """The metrics; a stop does not fail for one that is no number."""
        try:
            return self._progress.metric_values()
        except ConfigError as error:
            if reason is not Reason.EMERGENCY:
                raise
            say(str(error))
        numbers = {n: v for n, v in self._progress.metrics.items() if isinstance(v, (int, float))}
        return Progress(metrics=numbers).metric_values()

    def _capture(self, metrics: dict[str, float]) -> dict[str, Any]:
        place = self._place
        return {
            "epoch": self.epoch,
            "step": self.global_step,
            **metrics,
            **self._registry.capture(),
            "state": to_plain(self.state, "session.state"),
            "rng": rng.capture(),
            "data": {
                **self._data.state(),
                "caveats": place.caveats(self.global_step, self._polling),
            },
        }

    def _remember_replay_point(self) -> None:
        with refusing():
            metrics = self._progress.metric_values()
            self._replay_point = ReplayPoint(self._capture(metrics), metrics)

    def _is_resumable(self) -> bool:
        """Whether a run resumed from a checkpoint made here would continue at the right place."""
        if self._replay_point is not None:
            return self._replay_point.is_intact()
        if self._polling and self._data.mid_batch:
            return False
        return self._place.is_resumable(self.global_step)

    def _report_failure(self, error: CheckpointWriteError) -> None:
        self._home.tell(JournalEvent.CHECKPOINT_FAILED, step=error.step, problem=str(error))
        if not self._home.supervised:
            say(f"{error}; training goes on")

    # --- restoring ---------------------------------------------------------------------------

    def _resume(self, checkpoint: Checkpoint) -> None:
        restored = read_state(checkpoint)
        self._registry.restore(restored.content, checkpoint.state_file)
        self.state.clear()
        self.state.update(restored.state)
        self._progress = restored.progress
        self._data.load(restored.position)
        self.resumed_from = checkpoint.path
        # Last, since loading may draw from the streams.
        self._problems = restored.problems + rng.restore(restored.streams)
        self._home.tell(
            JournalEvent.RESUMED,
            path=str(checkpoint.path),
            step=self.global_step,
            exactness=self.exactness,
        )

    def _start(self, source: Path) -> None:
        content = read_classic(source)
        left_alone = self._registry.restore_classic(content, source)
        if left_alone:
            say(f"{source} has no state of {', '.join(left_alone)}: left as it is")
        self._progress = Progress(content["epoch"], content["step"])
