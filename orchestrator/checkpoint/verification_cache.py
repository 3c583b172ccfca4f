"""Remembers which checkpoints have been verified, until one of their files changes."""

import os

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.verification import verify

# What changes when a file is replaced or written to: inode, size, modification time of each.
Signature = tuple[tuple[int, int, int], ...]


class VerificationCache:
    """The checkpoints that this process has verified, by name.

    A remembered verification is enough to delete on, not to resume from: a disk loses bytes
    without touching the inode.
    """

    def __init__(self) -> None:
        self._verified: dict[str, Signature] = {}

    def verify(self, checkpoint: Checkpoint, *, to_load: bool = False) -> None:
        """Verify a checkpoint unless that was done and none of its files has changed since.

        Raises CheckpointInvalidError and UnreadableError as ``verification.verify`` does.
        """
        signature = _signature_of(checkpoint)
        if signature is None or self._verified.get(checkpoint.name) != signature:
            verify(checkpoint, to_load=to_load)
            if signature is not None:
                self._verified[checkpoint.name] = signature

    def record(self, checkpoint: Checkpoint) -> None:
        """Remember a checkpoint whose every byte has just been read."""
        if (signature := _signature_of(checkpoint)) is not None:
            self._verified[checkpoint.name] = signature

    def forget(self, name: str) -> None:
        """Forget a checkpoint, which is then verified again or is gone."""
        self._verified.pop(name, None)

    def is_current(self, checkpoint: Checkpoint) -> bool:
        """Return whether the checkpoint was verified and has not changed since."""
        signature = _signature_of(checkpoint)
        return signature is not None and self._verified.get(checkpoint.name) == signature


def _signature_of(checkpoint: Checkpoint) -> Signature | None:
    folder = checkpoint.contents.folder
    try:
        stats = [os.lstat(folder / name) for name in sorted(checkpoint.manifest.files)]
    except OSError:
        return None  # verification reads the file and reports the problem
    return tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in stats)
