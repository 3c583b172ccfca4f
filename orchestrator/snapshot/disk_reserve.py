"""Disk space that is kept free for a last save on a disk that is full by then."""

import contextlib
import os
from collections.abc import Callable

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.errors import FULL_DISK, CheckpointWriteError
from orchestrator.rundir.paths import RunDir
from orchestrator.system.regular_files import open_regular

# Room for the manifest, for directories, and for a file that has grown since.
MARGIN_BYTES = 1 << 16


def keep_reserve(run: RunDir, image_bytes: int) -> None:
    """Reserve disk for an image of this size, if at least twice as much is free."""
    size = image_bytes + MARGIN_BYTES
    with contextlib.suppress(OSError, AttributeError):  # not every system can allocate
        if os.path.exists(run.reserve_file) and run.reserve_file.stat().st_size >= size:
            return
        room = os.statvfs(run.root)
        if room.f_bavail * room.f_frsize > 2 * size:
            _allocate(run, size)


def with_reserve(run: RunDir, publish: Callable[[], Checkpoint]) -> Checkpoint:
    """Publish a checkpoint; on a full disk give the reserved space back, and publish it again.

    Raises CheckpointWriteError.
    """
    try:
        return publish()
    except CheckpointWriteError as error:
        if error.cause.errno not in FULL_DISK or not _free(run):
            raise
        return publish()


def _free(run: RunDir) -> bool:
    """Give the reserved space back; return whether there was some."""
    try:
        run.reserve_file.unlink()
    except OSError:
        return False
    return True


def _allocate(run: RunDir, size: int) -> None:
    descriptor = open_regular(run.reserve_file, os.O_WRONLY | os.O_CREAT)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        run.reserve_file.unlink()
    finally:
        os.close(descriptor)
