"""Keeps the checkpoints of a running run: knows them, chooses among them, rotates them."""

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import structlog

from orchestrator.checkpoint.checkpoint import Checkpoint, read_checkpoint
from orchestrator.checkpoint.checkpoint_journal import CheckpointJournal
from orchestrator.checkpoint.retention import RetentionPolicy
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import verify
from orchestrator.errors import CheckpointInvalidError, OrchestratorError, UnreadableError
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.snapshot.slots import Snapshot
from orchestrator.supervisor.recovery.failure_budget import FailureBudget
from orchestrator.system.priority import lower_priority
from orchestrator.system.threads import in_thread


class CheckpointCatalog:
    """The store as the supervisor sees it: each change is journalled, each publish refills."""

    def __init__(
        self,
        store: Store,
        policy: RetentionPolicy,
        journal: Journal,
        budget: FailureBudget,
        events: list[dict[str, Any]],
    ) -> None:
        """``events`` are the journal's so far: what they mention is not announced again.

        But for what a person has deleted since: the run may make one of that name anew.
        """
        self._store = store
        self._policy = policy
        self._journal = CheckpointJournal(journal)
        self._budget = budget
        self._log = structlog.get_logger()
        self._rotating = asyncio.Lock()
        self._announced = {
            Path(str(event.get("path"))).name
            for event in events
            if event["event"] == JournalEvent.CHECKPOINT_PUBLISHED
        } & {path.name for path in store.directories()}
        self.attempt: int | None = None
        self.resumed_from: Checkpoint | None = None
        self.newest: Checkpoint | None = None

    async def sweep(self) -> None:
        """Remove what a dead process left half-written; only while nobody publishes."""
        await in_thread(self._store.sweep)

    async def choose(self, handed: Snapshot | None) -> Checkpoint | None:
        """The checkpoint to resume from, verified. Raises NoValidCheckpointError.

        Where a snapshot is handed on that is newer, nothing is read: it is then the newest one that
        was verified before.
        """
        self.notice_published()
        if handed is not None:
            self.resumed_from = self._store.newest_verified()
            return self.resumed_from
        loop = asyncio.get_running_loop()

        def report(error: CheckpointInvalidError) -> None:
            loop.call_soon_threadsafe(self._quarantined, error)

        self.resumed_from = await in_thread(lambda: self._store.newest_valid(report))
        self.newest = self.resumed_from
        return self.resumed_from

    def published(self, name: str, seconds: float | None = None) -> Checkpoint | None:
        """Take note of a checkpoint that the trainer announces; None if it is not there."""
        try:
            checkpoint = read_checkpoint(self._store.run.checkpoints / name)
        except (CheckpointInvalidError, UnreadableError, ValueError):
            return None
        if name not in self._announced:
            self._announced.add(name)
            manifest = checkpoint.manifest
            self._journal.record_publication(checkpoint, self.attempt, seconds=seconds)
            # A checkpoint that nobody would resume from is no progress.
            if manifest.healthy:
                self._budget.refill(manifest.step, manifest.epoch)
                self.newest = max(filter(None, (self.newest, checkpoint)), key=lambda c: c.order)
        return checkpoint

    def withdrawn(self, checkpoint: Checkpoint, reason: str) -> None:
        """Take note that a script has taken back what it had saved."""
        self._record_deletion(checkpoint, reason)
        if self.newest is not None and self.newest.name == checkpoint.name:
            self.newest = max(self._store.all(), key=lambda c: c.order, default=None)

    def notice_published(self) -> None:
        """Catch up with what a trainer published but could not announce before it died."""
        # A disk that shows nothing now is the affair of the next choice.
        with contextlib.suppress(UnreadableError):
            for checkpoint in self._store.all():
                if checkpoint.name not in self._announced:
                    self.published(checkpoint.name)

    async def rotate(self) -> None:
        """Apply retention; one rotation at a time."""
        loop = asyncio.get_running_loop()
        in_use = {self.resumed_from.name} if self.resumed_from else set()

        def report(error: CheckpointInvalidError) -> None:
            loop.call_soon_threadsafe(self._quarantined, error)

        def delete() -> list[Checkpoint]:
            lower_priority()
            return self._store.apply_retention(self._policy, in_use, report)

        async with self._rotating:
            try:
                deleted = await in_thread(delete)
            except (OSError, OrchestratorError) as error:
                self._log.warning("cannot rotate checkpoints", problem=str(error))
                return
        for checkpoint in deleted:
            self._record_deletion(checkpoint)

    def _record_deletion(self, checkpoint: Checkpoint, reason: str | None = None) -> None:
        self._announced.discard(checkpoint.name)
        self._journal.record_deletion(checkpoint, self.attempt, reason=reason)

    async def demote(self, handed: Snapshot | None, reason: str) -> bool:
        """Set aside the checkpoint resumed from, if a valid older one can take its place.

        Where that was a snapshot, it is the checkpoint that this has become.
        """
        try:
            suspect = self.resumed_from if handed is None else self._become(handed)
            if suspect is None:
                return handed is not None and self.newest is not None
            if not await in_thread(lambda: self._can_be_replaced(suspect)):
                return False
        except UnreadableError as error:
            self._log.warning("cannot set the checkpoint aside", problem=str(error))
            return False
        try:
            self._store.quarantine(suspect.path, reason)
        except OSError as error:
            if os.path.lexists(suspect.path):
                self._log.warning("cannot set the checkpoint aside", problem=str(error))
                return False
        self._quarantined(CheckpointInvalidError(suspect.path, reason), demoted=True)
        return True

    def _become(self, snapshot: Snapshot) -> Checkpoint | None:
        return next(
            (c for c in self._store.all() if c.manifest.position == snapshot.position), None
        )

    def _can_be_replaced(self, suspect: Checkpoint) -> bool:
        """Whether nobody has pinned it and an older one is valid, every byte of it."""
        try:
            if read_checkpoint(suspect.path).pinned:
                return False
        except (CheckpointInvalidError, UnreadableError):
            return False
        for older in reversed(self._store.all()):
            if older.order < suspect.order and older.manifest.healthy:
                with contextlib.suppress(CheckpointInvalidError, UnreadableError):
                    verify(older)
                    return True
        return False

    def _quarantined(self, error: CheckpointInvalidError, demoted: bool = False) -> None:
        if os.path.lexists(error.path):
            self._log.warning(
                "cannot set a bad checkpoint aside; it is passed over",
                path=str(error.path),
                reason=error.reason,
            )
            return
        self._announced.discard(error.path.name)
        self._log.warning(
            "checkpoint set aside", path=str(error.path), reason=error.reason, kept_in="quarantine"
        )
        self._journal.record_quarantine(error.path, error.reason, self.attempt, demoted=demoted)
