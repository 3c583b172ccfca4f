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
    """The checkpoints that this process has read, by their directories."""

    def __init__(self) -> None:
        self._read: dict[Path, tuple[Signature, Checkpoint]] = {}

    def read(self, path: Path) -> Checkpoint:
        """Return the checkpoint in a directory; raises as ``read_checkpoint`` does."""
        signature = _signature_of(path)
        known = self._read.get(path)
        if known is not None and known[0] == signature:
            return known[1]
        checkpoint = read_checkpoint(path)
        if signature is not None:
            self._read[path] = signature, checkpoint
        return checkpoint

    def forget_others(self, paths: list[Path]) -> None:
        """Forget all checkpoints but those in these directories."""
        if len(self._read) > len(paths):
            kept = set(paths)
            self._read = {path: known for path, known in self._read.items() if path in kept}


def _signature_of(path: Path) -> Signature | None:
    try:
        folder, manifest = os.lstat(path), os.lstat(path / MANIFEST_FILE)
    except OSError:
        return None  # reading it reports the problem
    return (
        *(folder.st_mode, folder.st_ino, folder.st_dev, folder.st_mtime_ns),
        *(manifest.st_mode, manifest.st_ino, manifest.st_size, manifest.st_mtime_ns),
        int((path / PIN_FILE).exists()),
    )
