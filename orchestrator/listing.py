"""What `checkpoints list` and `checkpoints verify` say about every checkpoint of a run."""

from typing import Any

from orchestrator.checkpoint.manifest import json_metrics
from orchestrator.checkpoint.reading import read_checkpoint, verify
from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointInvalidError, UnreadableError


def list_checkpoints(store: Store) -> list[dict[str, Any]]:
    """One object a checkpoint, newest last, every byte verified; ``problem`` where not valid."""
    rows = []
    for path in store.directories():
        row: dict[str, Any] = dict.fromkeys(
            ("step", "epoch", "reason", "bytes", "healthy", "time", "problem")
        )
        row |= {"path": str(path), "valid": False, "pinned": False, "metrics": {}}
        try:
            checkpoint = read_checkpoint(path)
            manifest = checkpoint.manifest
            row |= {
                "step": manifest.step,
                "epoch": manifest.epoch,
                "reason": manifest.reason.value,
                "bytes": manifest.total_bytes,
                "healthy": manifest.healthy,
                "pinned": checkpoint.pinned,
                "time": manifest.time,
                "metrics": json_metrics(manifest.metrics),
            }
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
