"""Reads checkpoints, each only once until its directory changes."""

import os
from pathlib import Path

from orchestrator.checkpoint.checkpoint import (
    MANIFEST_FILE,
    PIN_FILE,
    Checkpoint,
    read_checkpoint,
)

# What changes when the directory or its manifest is replaced, written to, or pinned.
Signature = tuple[int, ...]


class CheckpointCache:
    """The checkpoints of a run that this process has read, by the names of their directories."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[Signature, Checkpoint]] = {}

    def read(self, path: Path) -> Checkpoint:
        """Return the checkpoint in a directory; raises as ``read_checkpoint`` does."""
        signature = _signature_of(path)
        known = self._read.get(path.name)
        if known is not None and known[0] == signature:
            return known[1]
        checkpoint = read_checkpoint(path)
        if signature is not None:
            self._read[path.name] = signature, checkpoint
        return checkpoint

    def forget_others(self, names: list[str]) -> None:
        """Forget all checkpoints but those in the directories of these names."""
        if len(self._read) > len(names):
            kept = set(names)
            self._read = {name: known for name, known in self._read.items() if name in kept}


def _signature_of(path: Path) -> Signature | None:
    try:
        folder, manifest = os.lstat(path), os.lstat(path / MANIFEST_FILE)
    except OSError:
        return None  # reading it reports the problem
    return (
        *(folder.st_mode, folder.st_ino, folder.st_dev, folder.st_mtime_ns),
        *(manifest.st_mode, manifest.st_ino, manifest.st_size, manifest.st_mtime_ns),
        int(os.path.exists(path / PIN_FILE)),
    )
