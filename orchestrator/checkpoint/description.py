"""A checkpoint as commands and reports show it, from its manifest alone."""

from typing import Any

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import json_metrics


def description_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the facts of a checkpoint as JSON has them; none of its files is read."""
    manifest = checkpoint.manifest
    return {
        "path": str(checkpoint.shown_path),
        "step": manifest.step,
        "epoch": manifest.epoch,
        "reason": manifest.reason.value,
        "bytes": manifest.total_bytes,
        "healthy": manifest.healthy,
        "pinned": checkpoint.pinned,
        "time": manifest.time,
        "exactness": manifest.exactness,
        "metrics": json_metrics(manifest.metrics),
    }
