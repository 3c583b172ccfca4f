"""Verifies checkpoints: compares every byte on disk with the digests in the manifest."""

import errno
import mmap
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import xxhash

from orchestrator.checkpoint.checkpoint import Checkpoint, reading_problem
from orchestrator.checkpoint.contents import STATE_FILE
from orchestrator.checkpoint.digesting_writer import DigestingWriter
from orchestrator.checkpoint.manifest import FileRecord
from orchestrator.errors import CheckpointInvalidError
from orchestrator.system.direct_file import DIRECT_BLOCK_BYTES
from orchestrator.system.durable import Disk, atomic_replacement
from orchestrator.system.holes import has_hole, problem_of_holes
from orchestrator.system.regular_files import open_regular

READ_CHUNK_BYTES = 16 << 20
# Bytes in the page cache are copied from there, best while they are in the processor's cache too.
CACHED_CHUNK_BYTES = 1 << 20


def verify(checkpoint: Checkpoint, *, to_load: bool = False) -> None:
    """Read every byte of a checkpoint's files and compare the digests with the manifest.

    What counts are the bytes on the disk, so they are read past the page cache, which training
    needs itself. ``to_load`` reads them into the page cache, for files that are loaded next. Raises
    CheckpointInvalidError when they differ, UnreadableError when the system does not allow to find
    out.
    """
    verify_files(checkpoint, checkpoint.contents.folder, to_load=to_load)


def verify_files(checkpoint: Checkpoint, folder: Path, *, to_load: bool) -> None:
    """Verify the files of the checkpoint's names in ``folder``; raises as ``verify`` does."""
    for name, record in checkpoint.manifest.files.items():
        if any(os.path.islink(above) for above in _folders_of(checkpoint, name)):
            reason = f"{name} is behind a symbolic link"
            raise CheckpointInvalidError(checkpoint.path, reason)
        check = partial(_check_opened, checkpoint, name)
        try:
            actual = digest_of(folder / name, direct=not to_load, check=check)
        except OSError as error:
            raise reading_problem(checkpoint.path, name, error) from None
        if actual.xxh3_128 != record.xxh3_128:
            raise CheckpointInvalidError(checkpoint.path, f"{name} has changed: wrong digest")


def _check_opened(checkpoint: Checkpoint, name: str, descriptor: int) -> None:
    """Check how long a file is, and that all of it is there: holes can be read for years."""
    facts, wanted = os.fstat(descriptor), checkpoint.manifest.files[name].bytes
    if facts.st_size != wanted:
        reason = f"{name} has {facts.st_size} bytes, not {wanted}"
        raise CheckpointInvalidError(checkpoint.path, reason)
    if (problem := problem_of_holes(facts)) is not None and has_hole(descriptor):
        raise CheckpointInvalidError(checkpoint.path, f"{name} {problem}")


def _folders_of(checkpoint: Checkpoint, name: str) -> list[Path]:
    """Return the folders between the checkpoint's directory, or its files', and this file."""
    root = checkpoint.contents.folder
    roots = {checkpoint.path, root}
    return [folder for folder in (root / name).parents if not roots.isdisjoint(folder.parents)]


def export_state(
    checkpoint: Checkpoint, target: Path, disk: Disk | None = None, *, replace: bool = False
) -> None:
    """Copy state.pt to ``target`` and check its digest on the way; only ``replace`` overwrites.

    Raises ConfigError when the checkpoint has no state.pt, CheckpointInvalidError when the bytes
    are not the ones that were saved, and OSError.
    """
    with (
        open(open_regular(checkpoint.state_file, os.O_RDONLY, real_parents=1), "rb") as source,
        atomic_replacement(target, disk or Disk(), replace=replace) as file,
    ):
        _check_opened(checkpoint, STATE_FILE, source.fileno())
        writer = DigestingWriter(file)
        while chunk := source.read(READ_CHUNK_BYTES):
            writer.write(chunk)
        if writer.record() != checkpoint.manifest.files[STATE_FILE]:
            raise CheckpointInvalidError(checkpoint.path, f"{STATE_FILE} has changed")


def digest_of(
    path: Path, *, direct: bool, check: Callable[[int], None] | None = None
) -> FileRecord:
    """Return size and digest of one regular file that is no link. Raises OSError.

    ``direct`` reads past the page cache. ``check`` is called with the descriptor before that.
    """
    if direct:
        try:
            flags = os.O_RDONLY | getattr(os, "O_DIRECT", 0)
            return _digest_opened(open_regular(path, flags), READ_CHUNK_BYTES, check)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return _digest_opened(open_regular(path, os.O_RDONLY), CACHED_CHUNK_BYTES, check)


def digest_of_opened(descriptor: int) -> FileRecord:
    """Return size and digest of a file that was just opened; close it. Raises OSError."""
    return _digest_opened(descriptor, CACHED_CHUNK_BYTES)


def _digest_opened(
    descriptor: int, chunk_bytes: int, check: Callable[[int], None] | None = None
) -> FileRecord:
    with open(descriptor, "rb", buffering=0) as file:
        length = os.fstat(descriptor).st_size
        if check is not None:
            check(descriptor)
        digest, size = xxhash.xxh3_128(), 0
        # No larger than the file: for a direct read the kernel fills in every page of the buffer.
        blocks = length // DIRECT_BLOCK_BYTES + 1
        buffer_bytes = min(chunk_bytes, blocks * DIRECT_BLOCK_BYTES)
        with mmap.mmap(-1, buffer_bytes) as aligned, memoryview(aligned) as buffer:
            # Files of the kernel's that say they are empty may block, or never end.
            while length and (count := file.readinto(buffer)):
                digest.update(buffer[:count])
                size += count
                if size > length:
                    raise OSError(errno.EFBIG, "it has grown meanwhile")
    return FileRecord(bytes=size, xxh3_128=digest.hexdigest())
