"""How a framework's run saves: the framework writes files when asked to, and they are published."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Manifest
from orchestrator.checkpoint.publication import publish_files
from orchestrator.errors import CheckpointWriteError
from orchestrator.ipc.control_page import Field, Phase
from orchestrator.pace.snapshot_pace import SnapshotPace
from orchestrator.rundir.journal import utc_now
from orchestrator.training.loop.due_saves import DueSaves
from orchestrator.training.runtime.local_writer import publish_and_report
from orchestrator.training.runtime.membership import RunMembership
from orchestrator.training.state.progress import Progress
from orchestrator.training.state.registered_objects import parameters_of
from orchestrator.training.state.tensor_kinds import all_finite
from orchestrator.training.state.versions import VERSIONS


@dataclass(frozen=True)
class Framework:
    """The framework that trains, and its version, as the manifest has them."""

    name: str
    version: str


@dataclass(frozen=True)
class _Files:
    """What the framework has written; ``link`` promises that it never changes these files."""

    draft: Manifest
    source: Path
    link: bool


class FrameworkSaves:
    """The save strategy of a framework's run; a framework takes no snapshots in memory.

    Attributes:
        progress: The counters of the run.
        pace: When the next snapshot in memory is due: never.
        doubts: Why a run resumed from the next checkpoint may differ from an uninterrupted one.
    """

    def __init__(
        self, membership: RunMembership, due: DueSaves, progress: Progress, framework: Framework
    ) -> None:
        self.progress = progress
        self.pace = SnapshotPace(None)
        self.doubts: list[str] = []
        self._membership = membership
        self._page = membership.page
        self._due = due
        self._framework = framework
        self._saved_step: int | None = None
        self._refused: _Files | None = None

    def attend(self, now_ns: int) -> None:
        """Report a stop that has been requested; the framework is asked to save after that."""
        if self._due.stop_wanted:
            self._membership.report_stop(self.progress.step)

    def begin(self, resumed: Checkpoint | None) -> None:
        """Start the schedule; the step of ``resumed`` is saved already."""
        self._saved_step = resumed.manifest.step if resumed else None
        self._due.schedule.begin(self.progress.step, self.progress.epoch)

    @property
    def save_wanted(self) -> bool:
        """Whether the framework should save now: for a stop, on request, or as scheduled."""
        stop_is_unsaved = self._due.stop_wanted and not self.is_saved
        return stop_is_unsaved or self._due.is_due(self.progress)

    @property
    def is_saved(self) -> bool:
        """Whether this step has been published with healthy weights."""
        return self._saved_step == self.progress.step

    def publish(
        self, source: Path, model: torch.nn.Module, *, link: bool, final: bool
    ) -> Checkpoint | None:
        """Publish what the framework has written; None if the disk refused it."""
        self._page[Field.PHASE] = Phase.SAVE
        self._membership.metrics.flush()
        requests = self._due.requests
        files = _Files(self._draft(model, final=final), source, link)
        try:
            checkpoint = self._publish(files)
        except CheckpointWriteError:
            self._refused = files
            self._due.record_failure()
            return None
        finally:
            self._page[Field.PHASE] = Phase.TRAIN
            self._membership.saving_clock.add_since_safe_point()
            self._due.served_requests = requests
        self._refused = None
        self._due.record_success(checkpoint)
        self._due.schedule.begin(self.progress.step, self.progress.epoch)
        if checkpoint.manifest.healthy:
            self._saved_step = self.progress.step
        return checkpoint

    def publish_refused(self) -> None:
        """Try once more to publish what the disk has refused last, if it has.

        Raises:
            CheckpointWriteError: The disk refuses it again.
        """
        if self._refused is not None:
            self._publish(self._refused)

    def _publish(self, files: _Files) -> Checkpoint:
        store = self._membership.backend.facts.store
        publish = partial(publish_files, store, files.draft, files.source, link=files.link)
        return publish_and_report(self._membership.backend, publish)

    def _draft(self, model: torch.nn.Module, *, final: bool) -> Manifest:
        return Manifest(
            run_id=self._membership.backend.facts.store.run_id,
            step=self.progress.step,
            epoch=self.progress.epoch,
            reason=self._due.reason(final=final),
            metrics=self.progress.measured_here(self.progress.metric_values()),
            healthy=all(map(all_finite, parameters_of(model))),
            time=utc_now(),
            files={},
            versions={**VERSIONS, self._framework.name: self._framework.version},
            doubts=self.doubts,
            framework=self._framework.name,
            start=self._membership.backend.facts.store.start_record,
        )
