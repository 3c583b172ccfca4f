"""The session: what a training script talks to (docs/reference/session.md)."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from orchestrator.checkpoint.manifest import Reason
from orchestrator.errors import CheckpointWriteError, ConfigError
from orchestrator.ipc.control_page import Field, Phase
from orchestrator.training.exits import conclude, refusing
from orchestrator.training.loop.loop_state import LoopState
from orchestrator.training.loop.resume import resume_newest, start_from_classic
from orchestrator.training.runtime.membership import RunMembership
from orchestrator.training.safe_points import SafePoints
from orchestrator.training.saving.saver import Saver
from orchestrator.training.state.progress import detach
from orchestrator.training.state.registry import Registry
from orchestrator.training.stop import TrainingStopped

# Plain integers: the hot path looks them up at every step.
STEP = int(Field.STEP)
PHASE = int(Field.PHASE)
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
        self._course = LoopState(self._registry, self.state, torch.initial_seed())
        self._entered = False

    # --- entering and leaving ----------------------------------------------------------------

    def __enter__(self) -> Self:
        """Join or open the run, restore the newest valid checkpoint, watch for signals.

        Raises TrainingRefused, after printing the reason, when that is not possible.
        """
        with refusing():
            self._joined = RunMembership(self._run_dir)
            self._home, self._page = self._joined.home, self._joined.page
            self._saver = Saver(self._home, self._registry)
            self._metrics = self._joined.metrics
            try:
                self._begin()
            except BaseException as error:
                self._leave(error)
                raise
        return self

    def _begin(self) -> None:
        self._registry.add_scalers()
        self._course = LoopState(
            self._registry,
            self.state,
            torch.initial_seed(),
            allow_data_change=self._home.allow_data_change,
        )
        self._page[PHASE] = Phase.RESTORE
        self.resumed_from = resume_newest(self._home, self._registry, self._course)
        self._safe_points = SafePoints(
            self._home, self._course, self._saver, self._metrics, lambda: self._joined.stop_source
        )
        if self.resumed_from is not None:
            self._safe_points.schedule.begun(self.global_step, self.epoch)
        elif self._start_from is not None:
            start_from_classic(self._start_from, self._registry, self._course)
        self._metrics.resume(self.global_step, self.epoch)
        self._steps_at_start = self.global_step
        self._page[Field.STEP] = self.global_step
        self._page[Field.EPOCH] = self.epoch
        self._page[PHASE] = Phase.TRAIN
        self._entered = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Mark the run complete, or record how it ended; then end loader workers."""
        conclude(error, self._complete, self._leave)

    def _complete(self) -> None:
        def save() -> None:
            self._safe_points.save_now(Reason.FINAL)

        self._joined.complete(self._course.progress, self._steps_at_start, save)

    def _leave(self, error: BaseException | None) -> None:
        self._entered = False
        self._joined.end_workers()
        if isinstance(error, TrainingStopped) and self._safe_points.emergency is not None:
            # It was being written while the workers ended.
            error.settle(self._safe_points.outcome(self._safe_points.emergency))
        self._saver.close()
        self._joined.leave(error)

    # --- what scripts read and register ------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self._course.progress.epoch

    @property
    def exactness(self) -> str | None:
        """EXACT, or APPROXIMATE and why; None in a run that was not resumed."""
        return self._course.exactness

    @property
    def run_id(self) -> str:
        """The id of the run, the same in each of its lives; inside the ``with`` block."""
        return self._home.store.run_id

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
            self._end_epoch()
            self._safe_points.reach()

    def _end_epoch(self) -> None:
        self._course.end_epoch()
        self._page[Field.EPOCH] = self.epoch

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
            course.begin_pass(loader)
        used_up = yield from course.data.batches(loader, self.epoch)
        if used_up:
            self._page[PHASE] = Phase.EVALUATE
            with refusing():
                course.end_pass()

    def step(self, **metrics: Any) -> None:
        """One step is done: a safe point. ``metrics`` are single numbers or tensors of one element.

        Raises TrainingStopped when a stop was asked for and the state has been saved.
        """
        self._end_step(**metrics)
        self._safe_points.reach()

    def _end_step(self, **metrics: Any) -> None:
        progress = self._course.progress
        if progress.step == self._steps_at_start:
            self._home.run.done_file.unlink(missing_ok=True)
        plain = detach(metrics)
        self._course.end_step(plain)
        self._metrics.note(progress.step, progress.epoch, plain, is_poll=False)
        self._page[STEP] = progress.step
        self._page[PHASE] = TRAIN

    def poll(self, **metrics: Any) -> None:
        """A safe point without a step, for evaluation and warm-up.

        After an epoch's batches, what is saved is the state at their end, and a resumed run does
        everything after it again: the evaluation, a scheduler's step. Between a batch and its step
        nothing is saved, since the state belongs to neither.
        """
        plain = detach(metrics)
        self._course.begin_poll(plain)
        self._metrics.note(self.global_step, self.epoch, plain, is_poll=True)
        self._page[PHASE] = Phase.EVALUATE
        try:
            self._safe_points.reach()
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
            if self._registry.accumulates:
                raise ConfigError(
                    "cannot save while gradients are accumulated: call session.checkpoint() where "
                    "accelerator.sync_gradients is true"
                )
            try:
                return self._safe_points.save_now(Reason.REQUESTED).path
            except CheckpointWriteError:
                return None
