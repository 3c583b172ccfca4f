"""The rows of `checkpoints list` and `checkpoints verify`, one a checkpoint."""

from typing import Any

from orchestrator.checkpoint.checkpoint import read_checkpoint
from orchestrator.checkpoint.description import description_of
from orchestrator.checkpoint.quarantine import REASON_FILE
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import verify
from orchestrator.errors import CheckpointInvalidError, UnreadableError
from orchestrator.rundir.records import MAXIMUM_JSON_BYTES
from orchestrator.rundir.start import Start
from orchestrator.system.json_input import parse_object
from orchestrator.system.regular_files import read_regular


def list_checkpoints(store: Store) -> list[dict[str, Any]]:
    """Verify every byte of every checkpoint; return one row each, newest last.

    A checkpoint that is not valid has a ``problem``. ``differences`` tells what differs from the
    start that made the checkpoint before.
    """
    rows = []
    earlier: Start | None = None
    for path in store.directories():
        row: dict[str, Any] = dict.fromkeys(
            ("step", "epoch", "reason", "bytes", "healthy", "time", "exactness", "problem")
        )
        row["differences"] = []
        row |= {"path": str(path), "valid": False, "pinned": False, "metrics": {}}
        try:
            checkpoint = read_checkpoint(path)
            manifest = checkpoint.manifest
            row |= description_of(checkpoint)
            start = Start.from_json(manifest.start)
            row["start"] = manifest.start
            row["differences"] = start.differences_from(earlier) if start and earlier else []
            earlier = start or earlier
            if manifest.run_id != store.run_id:
                raise CheckpointInvalidError(path, f"belongs to run {manifest.run_id}")
            verify(checkpoint)
            row["valid"] = True
        except CheckpointInvalidError as error:
            row["problem"] = error.reason
        except UnreadableError as error:
            row["problem"] = str(error)
        rows.append(row)
    return rows


def list_quarantined(store: Store) -> list[dict[str, str]]:
    """Return ``path`` and ``reason`` of each checkpoint in quarantine."""
    rows = []
    for path in store.quarantine_folder.entries():
        try:
            note = parse_object(read_regular(path / REASON_FILE, MAXIMUM_JSON_BYTES))
            reason = note.get("reason")
        except (OSError, ValueError):
            # A link or a file cannot hold a note, and a full disk has no room for one.
            reason = None
        if not isinstance(reason, str):
            reason = "quarantined without a recorded reason"
        rows.append({"path": str(path), "reason": reason})
    return rows
