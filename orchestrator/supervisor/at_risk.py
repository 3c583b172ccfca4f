"""What would be lost now: if the trainer were killed, and if the machine went down."""

import time

from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.telemetry.status import Status


def kill_loses_seconds(status: Status, attempt: Attempt) -> float:
    """Return the seconds of training that the death of the trainer would cost at most."""
    saved = (status.newest_checkpoint, status.newest_snapshot)
    ages: list[float] = [each["age_seconds"] for each in saved if each is not None]
    return round(min([_trained_seconds(attempt), *ages]), 3)


def machine_loses_seconds(
    status: Status, attempt: Attempt, snapshots: SnapshotWriteQueue
) -> float | None:
    """Return the seconds that the end of the machine would cost at most; None for all of it.

    Its memory ends with it.
    """
    checkpoint, resumed = status.newest_checkpoint, attempt.resume_snapshot
    on_disk: list[float] = [checkpoint["age_seconds"]] if checkpoint is not None else []
    # What the attempt resumed from may be in memory only.
    if resumed is None or snapshots.is_written(resumed):
        on_disk.append(_trained_seconds(attempt))
    return round(min(on_disk), 3) if on_disk else None


def _trained_seconds(attempt: Attempt) -> float:
    return time.monotonic() - attempt.started
