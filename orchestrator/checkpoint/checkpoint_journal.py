"""The journal's events about checkpoints, all written here so that their fields never differ."""

import time
from collections.abc import Mapping
from pathlib import Path

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import json_metrics
from orchestrator.rundir.journal import Journal, JournalEvent

SNAPSHOT_SAMPLE_SECONDS = 60.0


class CheckpointJournal:
    """Journals what happens to the checkpoints of a run.

    The supervisor and a session without one both write through it. ``attempt`` is the number of the
    attempt that an event belongs to; None where there is none.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._snapshot_written = float("-inf")

    def record_publication(
        self,
        checkpoint: Checkpoint,
        attempt: int | None = None,
        *,
        seconds: float | None = None,
        source: Path | None = None,
    ) -> None:
        """Journal a new checkpoint.

        ``seconds`` is how long publishing took, None where that is not known. ``source`` is the
        file of another program that the checkpoint was imported from; only then is it a field.
        """
        manifest = checkpoint.manifest
        imported = {} if source is None else {"source": str(source)}
        self._journal.write(
            JournalEvent.CHECKPOINT_PUBLISHED,
            attempt,
            path=str(checkpoint.path),
            adopted=manifest.adopted.path if manifest.adopted else None,
            step=manifest.step,
            epoch=manifest.epoch,
            reason=manifest.reason,
            bytes=manifest.total_bytes,
            healthy=manifest.healthy,
            metrics=json_metrics(manifest.metrics),
            seconds=seconds,
            **imported,
        )

    def record_difference(self, attempt: int | None, *, step: int, tensors: list[str]) -> None:
        """Journal that the ranks hold different values of what they should hold equally."""
        self._journal.write(JournalEvent.REPLICAS_DIFFER, attempt, step=step, tensors=tensors)

    def record_deletion(
        self, checkpoint: Checkpoint, attempt: int | None = None, *, reason: str | None = None
    ) -> None:
        """Journal a deleted checkpoint; ``reason`` is a field only where a script deleted it."""
        withdrawn = {} if reason is None else {"reason": reason}
        self._journal.write(
            JournalEvent.CHECKPOINT_DELETED,
            attempt,
            path=str(checkpoint.path),
            step=checkpoint.manifest.step,
            **withdrawn,
        )

    def record_quarantine(
        self, path: Path, reason: str, attempt: int | None = None, *, demoted: bool = False
    ) -> None:
        """Journal what was moved from ``path`` to quarantine.

        ``demoted`` says that it was valid and made way for an older checkpoint.
        """
        self._journal.write(
            JournalEvent.CHECKPOINT_QUARANTINED,
            attempt,
            path=str(path),
            reason=reason,
            demoted=demoted,
        )

    def record_failure(
        self,
        problem: str,
        attempt: int | None = None,
        *,
        step: int | None = None,
        adopted: str | None = None,
    ) -> None:
        """Journal a checkpoint that could not be made.

        ``step`` is None where that is not known. ``adopted`` is the path of a script's own save
        that could not be sealed; only then is it a field.
        """
        path = {} if adopted is None else {"adopted": adopted}
        self._journal.write(
            JournalEvent.CHECKPOINT_FAILED, attempt, step=step, problem=problem, **path
        )

    def record_snapshot(self, facts: Mapping[str, object], attempt: int | None = None) -> None:
        """Journal a snapshot in memory, at most one every SNAPSHOT_SAMPLE_SECONDS."""
        now = time.monotonic()
        if now - self._snapshot_written >= SNAPSHOT_SAMPLE_SECONDS:
            self._snapshot_written = now
            self._journal.write(JournalEvent.SNAPSHOT_TAKEN, attempt, **facts)
