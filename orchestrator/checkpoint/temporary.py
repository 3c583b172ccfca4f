"""Temporary names beside the checkpoints, for what is being written or deleted."""

import secrets
from pathlib import Path

from orchestrator.rundir.paths import RunDir

WRITING_PREFIX = ".writing-"
TRASH_PREFIX = ".trash-"


def writing_path(run: RunDir) -> Path:
    """Return a new path for a checkpoint that is being written."""
    return run.checkpoints / f"{WRITING_PREFIX}{secrets.token_hex(8)}"


def trash_path(run: RunDir, name: str) -> Path:
    """Return a new path for the checkpoint ``name`` that is being deleted."""
    return run.checkpoints / f"{TRASH_PREFIX}{name}-{secrets.token_hex(4)}"
