"""A run whose loop and checkpoints are a framework's: what its integration calls."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Self

import torch

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import exactness_of
from orchestrator.errors import ConfigError
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import Field, Phase
from orchestrator.training.exits import conclude, refusing
from orchestrator.training.loop.due_saves import DueSaves
from orchestrator.training.loop.resume import checkpoint_of, report_resumed
from orchestrator.training.loop.totals import Totals
from orchestrator.training.runtime.membership import RunMembership
from orchestrator.training.safe_points import SafePoints
from orchestrator.training.saving.framework_saves import Framework, FrameworkSaves
from orchestrator.training.state.progress import Progress, detach
from orchestrator.training.stop import TrainingStopped


class FrameworkRun:
    """One training run, around a framework's own training.

    An integration calls its methods in this order: it enters ``open``, lets the framework load
    ``resume_from``, and calls ``begin``. After each step it calls ``step``; if ``save_wanted``, it
    lets the framework save and calls ``publish``; if ``stop_wanted``, it calls ``stop``. The run is
    complete when the ``with`` block ends without an exception.

    Attributes:
        resume_from: The directory with the files of the newest valid checkpoint, as they were
            published; None in a run that has none.
    """

    def __init__(
        self, membership: RunMembership, framework: Framework, resumed: Checkpoint | None
    ) -> None:
        """Use ``open``, which joins the run and leaves it."""
        self.resume_from: Path | None = resumed.resume_path if resumed else None
        self._membership = membership
        self._page = membership.page
        self._framework = framework
        self._resumed = resumed
        self._progress = Progress(refuses_bad_values=False)
        self._due = DueSaves(self._page, membership.backend.facts.settings.every)
        self._saves = FrameworkSaves(membership, self._due, self._progress, framework)
        self._totals = Totals(self._page)
        self._safe_points = SafePoints(membership, self._due, self._saves, self._totals)
        self._steps_at_start = 0

    # --- entering and leaving ----------------------------------------------------------------

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, framework: str, version: str, run_dir: str | Path | None = None
    ) -> Iterator[Self]:
        """Join or open a run for a ``with`` block, and find what to resume from.

        Args:
            framework: Its name, as the manifests of its checkpoints have it.
            version: Its version.
            run_dir: Where the run is kept if no supervisor says it; default: runs/<script>.

        Raises:
            TrainingRefused: That is not possible; the reason has been printed.
        """
        with refusing():
            membership = RunMembership(None if run_dir is None else Path(run_dir))
            try:
                if membership.backend.facts.world.size > 1:
                    raise ConfigError(
                        f"cannot train {framework} with several ranks yet: start it without "
                        "--nproc-per-node"
                    )
                membership.page[Field.PHASE] = Phase.RESTORE
                resumed = checkpoint_of(membership.backend, framework)
                run = cls(membership, Framework(framework, version), resumed)
            except BaseException as error:
                _leave(membership, error)
                raise
        try:
            yield run
        except BaseException as error:
            if membership.is_of_this_process:
                _leave(membership, error)
            raise
        if not membership.is_of_this_process:
            return  # a forked child that leaves the block is not the run
        conclude(None, run._complete, partial(_leave, membership))

    def _complete(self) -> None:
        # The framework has saved for the last time; only what the disk refused is left to publish.
        self._membership.complete(self._progress, self._steps_at_start, self._saves.publish_refused)

    # --- the loop ----------------------------------------------------------------------------

    def begin(
        self,
        step: int,
        epoch: int,
        doubts: Iterable[str] = (),
        *,
        total_steps: int | None = None,
        total_epochs: int | None = None,
    ) -> None:
        """Enter the loop; the framework has loaded ``resume_from``, if there is one.

        Args:
            step: The number of completed steps.
            epoch: The number of completed epochs.
            doubts: Why a resumed run may differ from one that was not interrupted.
            total_steps: The steps of the whole training; None where that is not known.
            total_epochs: The epochs of the whole training; None where that is not known.

        Raises:
            TrainingRefused: The framework begins at another step than that of the checkpoint.
        """
        self._progress.step, self._progress.epoch = step, epoch
        self._steps_at_start = step
        if self._resumed is not None:
            with refusing():
                self._resume(self._resumed, list(doubts))
        self._membership.metrics.resume(step, epoch)
        self._saves.begin(self._resumed)
        self._page[Field.STEP], self._page[Field.EPOCH] = step, epoch
        self._totals.announce(steps=total_steps, epochs=total_epochs)
        self._membership.begin_training()

    def _resume(self, resumed: Checkpoint, doubts: list[str]) -> None:
        name, step = self._framework.name, self._progress.step
        if step != resumed.manifest.step:
            raise ConfigError(
                f"cannot resume: {name} begins at step {step}, and the newest checkpoint, "
                f"{resumed.path}, is of step {resumed.manifest.step}; let it load that one, or "
                "start a new run in another run directory"
            )
        self._add_doubts(
            *resumed.manifest.doubts,
            f"nothing has compared what {name} restored with what it saved",
            *doubts,
        )
        exactness = exactness_of(self._saves.doubts)
        report_resumed(self._membership.backend, resumed, resumed.path, exactness)

    def step(self, step: int, epoch: int) -> None:
        """Pass a safe point after ``step`` complete steps and ``epoch`` complete epochs."""
        if self._progress.step == self._steps_at_start:
            self._membership.withdraw_completion()
        self._progress.step, self._progress.epoch = step, epoch
        self._page[Field.STEP], self._page[Field.EPOCH] = step, epoch
        self._page[Field.PHASE] = Phase.TRAIN
        self._safe_points.reach()

    def beat(self, phase: Phase) -> None:
        """Give a sign of life between two steps, with what the framework is busy with."""
        self._page[Field.PHASE] = phase
        self._safe_points.beat()

    def record(self, metrics: Mapping[str, Any]) -> None:
        """Record numbers that were measured on the weights of the last ``step``."""
        progress, plain = self._progress, detach(metrics)
        progress.record(plain)
        # As those of a poll, which are never thinned out: a framework logs seldom.
        self._membership.metrics.record(progress.step, progress.epoch, plain, is_poll=True)

    def add_doubt(self, reason: str) -> None:
        """Add a reason why this run may differ from one that was not interrupted."""
        self._add_doubts(reason)

    def _add_doubts(self, *reasons: str) -> None:
        self._saves.doubts = list(dict.fromkeys([*self._saves.doubts, *reasons]))

    # --- saving and stopping -----------------------------------------------------------------

    @property
    def stop_wanted(self) -> bool:
        """Whether the run is to be saved, and then to ``stop``."""
        return self._due.stop_wanted

    @property
    def save_wanted(self) -> bool:
        """Whether the framework should save at this step: for a stop, on request, or as due."""
        return self._saves.save_wanted

    @property
    def is_saved(self) -> bool:
        """Whether this step has been published with healthy weights."""
        return self._saves.is_saved

    def publish(
        self,
        source: Path,
        model: torch.nn.Module,
        *,
        link: bool = False,
        final: bool = False,
    ) -> Checkpoint | None:
        """Publish what the framework has written at this step as a checkpoint.

        Args:
            source: A directory or a file.
            model: Nothing resumes from a checkpoint if one of its weights is not finite.
            link: Whether the framework never writes into these files again, so that hard links
                can take the place of copies.
            final: Whether this is the last save of the run.

        Returns:
            The checkpoint; None if the disk refused it: training continues.
        """
        return self._saves.publish(source, model, link=link, final=final)

    def stop(self) -> NoReturn:
        """End the training of a run that is to stop.

        Raises:
            TrainingStopped: Always; its status says whether this step is saved.
        """
        self._membership.report_stop(self._progress.step)
        raise TrainingStopped(
            ExitStatus.STOPPED_SAVED if self.is_saved else ExitStatus.STOPPED_UNSAVED
        )


def _leave(membership: RunMembership, error: BaseException | None) -> None:
    membership.end_workers()
    membership.leave(error)
