"""The checkpoints of a running run: which are known, which one to resume from, which to delete."""

import asyncio
import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import structlog

from orchestrator.checkpoint.checkpoint import (
    Checkpoint,
    is_checkpoint_name,
    read_checkpoint,
)
from orchestrator.checkpoint.checkpoint_journal import CheckpointJournal
from orchestrator.checkpoint.newest_valid import newest_valid
from orchestrator.checkpoint.retention import RetentionPolicy
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import verify
from orchestrator.errors import CheckpointInvalidError, UnreadableError
from orchestrator.snapshot.slots import Snapshot
from orchestrator.supervisor.recovery.failure_budget import FailureBudget
from orchestrator.system.priority import lower_priority
from orchestrator.system.threads import in_thread

ROTATION_WAIT_SECONDS = 60.0


class CheckpointCatalog:
    """Records every change of the store in the journal, and progress in the failure budget.

    ``chosen`` is the checkpoint that the attempt resumes from, ``newest`` the newest healthy one.
    ``attempt_number`` goes into the journal; None before the first attempt of this supervisor.
    """

    def __init__(
        self,
        store: Store,
        policy: RetentionPolicy,
        journal: CheckpointJournal,
        budget: FailureBudget,
        published: Iterable[str],
    ) -> None:
        """Begin with the names of the checkpoints that the journal calls ``published``.

        A checkpoint that a person has deleted is not known: the run may make one of the same name.
        """
        self._store = store
        self._policy = policy
        self._journal = journal
        self._budget = budget
        self._log = structlog.get_logger()
        self._one_rotation = asyncio.Lock()
        self._rotations: set[asyncio.Task[None]] = set()
        self._known = set(published) & set(store.names())
        self.attempt_number: int | None = None
        self.chosen: Checkpoint | None = None
        self.newest: Checkpoint | None = None

    async def sweep(self) -> None:
        """Remove what a dead process left half-written; only while no process publishes."""
        await in_thread(self._store.sweep)

    async def choose(self, resume_snapshot: Snapshot | None) -> Checkpoint | None:
        """Choose the newest valid checkpoint to resume from. Raises NoValidCheckpointError.

        Where a newer snapshot is resumed from, no checkpoint is read: the newest one that was
        verified before is chosen then.
        """
        self.record_unknown()
        if resume_snapshot is not None:
            self.chosen = self._store.newest_verified()
            return self.chosen
        loop = asyncio.get_running_loop()

        def report(error: CheckpointInvalidError) -> None:
            loop.call_soon_threadsafe(self._record_quarantine, error)

        self.chosen = await in_thread(lambda: newest_valid(self._store, report))
        self.newest = self.chosen
        return self.chosen

    def record_published(self, name: str, seconds: float | None = None) -> Checkpoint | None:
        """Record a new checkpoint and return it; None if there is none of this name.

        ``seconds`` is how long publishing it took.
        """
        if not is_checkpoint_name(name):  # a trainer says so, and may name another directory
            return None
        try:
            checkpoint = read_checkpoint(self._store.run.checkpoints / name)
        except (CheckpointInvalidError, UnreadableError, ValueError):
            return None
        if name not in self._known:
            self._known.add(name)
            self._journal.record_publication(checkpoint, self.attempt_number, seconds=seconds)
            # An unhealthy checkpoint is never resumed from, so it is no progress.
            if checkpoint.manifest.healthy:
                self._budget.refill(checkpoint.manifest.position)
                self.newest = max(filter(None, (self.newest, checkpoint)), key=lambda c: c.order)
        return checkpoint

    def record_withdrawn(self, checkpoint: Checkpoint, reason: str) -> None:
        """Record that a script has deleted a checkpoint that it had saved."""
        self._record_deletion(checkpoint, reason)
        if self.newest is not None and self.newest.name == checkpoint.name:
            self.newest = next(self._store.newest_first(), None)

    def record_unknown(self) -> None:
        """Record what a trainer published but could not announce before it died."""
        # If the directory cannot be read now, the next choose() reports it.
        with contextlib.suppress(UnreadableError):
            for name in self._store.names():
                if name not in self._known:
                    self._record_if_own(self._store.run.checkpoints / name)

    def _record_if_own(self, path: Path) -> None:
        with contextlib.suppress(CheckpointInvalidError, UnreadableError):
            if read_checkpoint(path).manifest.run_id == self._store.run_id:
                self.record_published(path.name)

    def begin_rotation(self) -> None:
        """Begin to apply retention, in the background."""
        rotation = asyncio.ensure_future(self.rotate())
        self._rotations.add(rotation)
        rotation.add_done_callback(self._rotations.discard)

    async def wait_for_rotations(self) -> None:
        """Wait until running rotations have ended, at most ROTATION_WAIT_SECONDS."""
        if self._rotations:
            await asyncio.wait(self._rotations, timeout=ROTATION_WAIT_SECONDS)

    async def rotate(self) -> None:
        """Apply retention; one rotation at a time."""
        loop = asyncio.get_running_loop()
        in_use = {self.chosen.name} if self.chosen else set()

        def report(error: CheckpointInvalidError) -> None:
            loop.call_soon_threadsafe(self._record_quarantine, error)

        def delete() -> list[Checkpoint]:
            lower_priority()
            return self._store.apply_retention(self._policy, in_use, report)

        async with self._one_rotation:
            try:
                deleted = await in_thread(delete)
            except Exception as error:  # the training goes on, whatever is wrong with old ones
                self._log.warning("cannot rotate checkpoints", problem=str(error))
                return
        for checkpoint in deleted:
            self._record_deletion(checkpoint)

    def _record_deletion(self, checkpoint: Checkpoint, reason: str | None = None) -> None:
        self._known.discard(checkpoint.name)
        self._journal.record_deletion(checkpoint, self.attempt_number, reason=reason)

    async def demote(self, resume_snapshot: Snapshot | None, reason: str) -> bool:
        """Set aside the checkpoint resumed from; return whether a valid older one replaces it.

        Where a snapshot was resumed from, the suspect is the checkpoint that it has become.
        """
        try:
            suspect = self.chosen if resume_snapshot is None else self._made_from(resume_snapshot)
            if suspect is None:
                return resume_snapshot is not None and self.newest is not None
            if not await in_thread(lambda: self._can_be_replaced(suspect)):
                return False
        except UnreadableError as error:
            self._log.warning("cannot move the checkpoint to quarantine", problem=str(error))
            return False
        try:
            self._store.quarantine(suspect.path, reason)
        except OSError as error:
            if os.path.lexists(suspect.path):
                self._log.warning("cannot move the checkpoint to quarantine", problem=str(error))
                return False
        self._record_quarantine(CheckpointInvalidError(suspect.path, reason), demoted=True)
        return True

    def _made_from(self, snapshot: Snapshot) -> Checkpoint | None:
        return next(
            (c for c in self._store.all() if c.manifest.position == snapshot.position), None
        )

    def _can_be_replaced(self, suspect: Checkpoint) -> bool:
        """Return whether the suspect is not pinned, and every byte of an older one is valid."""
        try:
            if read_checkpoint(suspect.path).pinned:
                return False
        except (CheckpointInvalidError, UnreadableError):
            return False
        for older in self._store.newest_first():
            if older.order < suspect.order and older.manifest.healthy:
                with contextlib.suppress(CheckpointInvalidError, UnreadableError):
                    verify(older)
                    return True
        return False

    def _record_quarantine(self, error: CheckpointInvalidError, demoted: bool = False) -> None:
        if os.path.lexists(error.path):
            self._log.warning(
                "cannot move a bad checkpoint to quarantine; it is skipped",
                path=str(error.path),
                reason=error.reason,
            )
            return
        self._known.discard(error.path.name)
        self._log.warning(
            "checkpoint moved to quarantine", path=str(error.path), reason=error.reason
        )
        self._journal.record_quarantine(
            error.path, error.reason, self.attempt_number, demoted=demoted
        )
