"""A run whose loop and checkpoints are a framework's: what its integration talks to."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import torch

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Manifest, Reason, exactness_of
from orchestrator.errors import CheckpointWriteError, ConfigError
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import Field, Phase
from orchestrator.rundir.journal import JournalEvent, utc_now
from orchestrator.training.exits import conclude, refusing, say
from orchestrator.training.loop.resume import checkpoint_of
from orchestrator.training.loop.schedule import Schedule
from orchestrator.training.runtime.local_writer import publish_here
from orchestrator.training.runtime.membership import RunMembership
from orchestrator.training.safe_points import SHOW_METRICS_NS, say_unhealthy
from orchestrator.training.state.registry import Progress, all_finite, parameters_of
from orchestrator.training.state.versions import VERSIONS
from orchestrator.training.stop import TrainingStopped


class FrameworkRun:
    """One training run, as a context manager around a framework's own training.

    In this order: enter, let the framework load ``resume_from``, ``begin``; then after each step
    ``step``, a save by the framework and ``publish`` if ``save_wanted``, and ``stop`` if
    ``stop_wanted``. Left without an exception, the run is complete.
    """

    def __init__(self, framework: str, version: str, run_dir: str | Path | None = None) -> None:
        """``run_dir`` is where the run lives when no supervisor says it: runs/<script> else."""
        self.resume_from: Path | None = None
        """The directory with the files of the newest valid checkpoint, as they were published."""
        self._framework = framework
        self._versions = {**VERSIONS, framework: version}
        self._run_dir = None if run_dir is None else Path(run_dir)
        self._progress = Progress(refuses_bad_metrics=False)
        self._resumed: Checkpoint | None = None
        self._saved_step: int | None = None
        self._doubts: list[str] = []
        self._refused: Callable[[], Checkpoint] | None = None
        self._served_requests = self._show_at_ns = self._steps_at_start = 0
        self._stop_noticed = False

    # --- entering and leaving ----------------------------------------------------------------

    def __enter__(self) -> Self:
        """Join or open the run, find what to resume from, watch for signals.

        Raises TrainingRefused, after printing the reason, when that is not possible.
        """
        with refusing():
            self._joined = RunMembership(self._run_dir)
            self._home, self._page = self._joined.home, self._joined.page
            self._schedule = Schedule(self._home.every)
            try:
                self._page[Field.PHASE] = Phase.RESTORE
                self._resumed = checkpoint_of(self._home, self._framework)
            except BaseException as error:
                self._leave(error)
                raise
            self.resume_from = self._resumed.resume_path if self._resumed else None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Mark the run complete, or record how it ended; then end loader workers."""
        conclude(error, self._complete, self._leave)

    def _complete(self) -> None:
        self._joined.complete(self._progress, self._steps_at_start, self._save_last)

    def _save_last(self) -> None:
        """The framework has saved for the last time; what the disk refused of it is tried again."""
        if self._refused is not None:
            publish_here(self._home, self._refused)

    def _leave(self, error: BaseException | None) -> None:
        self._joined.end_workers()
        self._joined.leave(error)

    # --- the loop ----------------------------------------------------------------------------

    def begin(self, step: int, epoch: int, doubts: Iterable[str] = ()) -> None:
        """The framework has loaded ``resume_from``, if there is one, and enters its loop.

        ``doubts`` are reasons why the resumed run may differ from one that was not interrupted.
        Raises TrainingRefused where it begins anywhere else.
        """
        self._progress.step, self._progress.epoch = step, epoch
        self._steps_at_start = step
        if self._resumed is not None:
            with refusing():
                self._take_over(self._resumed, list(doubts))
        self._joined.metrics.resume(step, epoch)
        self._schedule.begun(step, epoch)
        self._page[Field.STEP], self._page[Field.EPOCH] = step, epoch
        self._page[Field.PHASE] = Phase.TRAIN

    def _take_over(self, resumed: Checkpoint, doubts: list[str]) -> None:
        if self._progress.step != resumed.manifest.step:
            raise ConfigError(
                f"cannot resume: {self._framework} begins at step {self._progress.step}, and the "
                f"newest checkpoint, {resumed.path}, is of step {resumed.manifest.step}; let it "
                "load that one, or start anew with another run directory"
            )
        unproven = f"nothing has compared what {self._framework} restored with what it saved"
        self._doubts = list(dict.fromkeys([*resumed.manifest.doubts, unproven, *doubts]))
        self._saved_step = resumed.manifest.step
        exactness = exactness_of(self._doubts)
        say(f"resumed at step {self._progress.step} from {resumed.name}: {exactness}")
        self._home.tell(
            JournalEvent.RESUMED,
            path=str(resumed.path),
            step=self._progress.step,
            from_memory=False,
            exactness=exactness,
        )

    def step(self, step: int, epoch: int) -> None:
        """So many steps and epochs are complete: a safe point."""
        progress, now = self._progress, time.monotonic_ns()
        if progress.step == self._steps_at_start:
            self._home.run.done_file.unlink(missing_ok=True)
        progress.step, progress.epoch = step, epoch
        self._page[Field.STEP], self._page[Field.EPOCH] = step, epoch
        self.alive(Phase.TRAIN)
        if self.stop_wanted:
            self._notice_stop()
        elif now >= self._show_at_ns:
            self._show_at_ns = now + SHOW_METRICS_NS
            self._home.show(progress.metric_values())
            self._joined.metrics.flush()

    def alive(self, phase: Phase) -> None:
        """A sign of life between two steps, and what the framework is busy with."""
        self._page[Field.PHASE] = phase
        self._page[Field.HEARTBEAT_NS] = time.monotonic_ns()
        self._page[Field.SAFE_POINTS] += 1

    def note(self, metrics: Mapping[str, Any]) -> None:
        """Numbers that were measured on the weights of the last ``step``."""
        progress, values = self._progress, dict(metrics)
        progress.note(values)
        # No step's own: what a framework logs, it logs seldom, and none of it is thinned out.
        self._joined.metrics.note(progress.step, progress.epoch, values, is_poll=True)

    def doubt(self, reason: str) -> None:
        """Say from now on why this run may differ from one that was not interrupted."""
        self._doubts = list(dict.fromkeys([*self._doubts, reason]))

    # --- saving and stopping -----------------------------------------------------------------

    @property
    def stop_wanted(self) -> bool:
        """Whether the run is to be saved, and then to ``stop``."""
        return self._joined.stop_wanted

    @property
    def save_wanted(self) -> bool:
        """Whether the framework should save at this step: for a stop, on request, or as due."""
        progress = self._progress
        return (
            (self.stop_wanted and self._saved_step != progress.step)
            or self._page[Field.CHECKPOINT_REQUESTS] != self._served_requests
            or self._schedule.is_due(progress.step, progress.epoch)
        )

    @property
    def is_saved(self) -> bool:
        """Whether this step has been published."""
        return self._saved_step == self._progress.step

    def publish(
        self,
        source: Path,
        model: torch.nn.Module,
        *,
        link: bool = False,
        final: bool = False,
    ) -> Checkpoint | None:
        """Have what the framework has written at this step, a directory or a file, published.

        None if the disk refused: training goes on. ``link`` promises that the framework never
        writes into these files again, so that hard links serve. Nothing resumes from a ``model``
        whose weights are not finite.
        """
        self._page[Field.PHASE] = Phase.SAVE
        self._joined.metrics.flush()
        requests = self._page[Field.CHECKPOINT_REQUESTS]
        draft = self._draft(model, self._reason(final=final))

        def publish() -> Checkpoint:
            return self._home.store.publish_files(draft, source, link=link)

        try:
            checkpoint = publish_here(self._home, publish)
        except CheckpointWriteError:
            self._refused = publish
            delay = self._schedule.failed()
            if not self.stop_wanted:
                say(f"training goes on; the next save is tried in {delay:.0f} s")
            return None
        finally:
            self._page[Field.PHASE] = Phase.TRAIN
            self._served_requests = requests
        self._refused = None
        self._schedule.succeeded()
        self._schedule.begun(self._progress.step, self._progress.epoch)
        if checkpoint.manifest.healthy:
            self._saved_step = self._progress.step
        else:
            say_unhealthy(checkpoint)
        return checkpoint

    def stop(self) -> NoReturn:
        """End the training of a run that is to stop. Raises TrainingStopped."""
        self._notice_stop()
        raise TrainingStopped(
            ExitStatus.STOPPED_SAVED if self.is_saved else ExitStatus.STOPPED_UNSAVED
        )

    def _notice_stop(self) -> None:
        if not self._stop_noticed:
            self._stop_noticed = True
            source = self._joined.stop_source or "request"
            self._home.tell(JournalEvent.STOP_NOTICED, step=self._progress.step, source=source)

    def _reason(self, *, final: bool) -> Reason:
        if self.stop_wanted:
            return Reason.EMERGENCY
        if final:
            return Reason.FINAL
        if self._page[Field.CHECKPOINT_REQUESTS] != self._served_requests:
            return Reason.REQUESTED
        return Reason.PERIODIC

    def _draft(self, model: torch.nn.Module, reason: Reason) -> Manifest:
        progress = self._progress
        return Manifest(
            run_id=self._home.store.run_id,
            step=progress.step,
            epoch=progress.epoch,
            reason=reason,
            metrics=progress.measured_here(progress.metric_values()),
            healthy=all(map(all_finite, parameters_of(model))),
            time=utc_now(),
            files={},
            versions=self._versions,
            doubts=self._doubts,
            framework=self._framework,
        )
