"""Verifies checkpoints: compares every byte on disk with the digests in the manifest."""

import errno
import mmap
import os
import stat
from pathlib import Path

import xxhash

from orchestrator.checkpoint.checkpoint import Checkpoint, reading_problem
from orchestrator.checkpoint.contents import STATE_FILE
from orchestrator.checkpoint.digesting_writer import DigestingWriter
from orchestrator.checkpoint.manifest import FileRecord
from orchestrator.errors import CheckpointInvalidError
from orchestrator.system.durable import DIRECT_BLOCK_BYTES, Disk, atomic_replacement
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
        try:
            facts = os.lstat(folder / name)
            if stat.S_ISREG(facts.st_mode):  # else the next line says what is wrong
                _check_size(checkpoint, name, facts.st_size)  # a file of holes is read for years
            actual = digest_of(folder / name, direct=not to_load)
        except OSError as error:
            raise reading_problem(checkpoint.path, name, error) from None
        _check_size(checkpoint, name, actual.bytes)
        if actual.xxh3_128 != record.xxh3_128:
            raise CheckpointInvalidError(checkpoint.path, f"{name} has changed: wrong digest")


def _check_size(checkpoint: Checkpoint, name: str, size: int) -> None:
    wanted = checkpoint.manifest.files[name].bytes
    if size != wanted:
        raise CheckpointInvalidError(checkpoint.path, f"{name} has {size} bytes, not {wanted}")


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
    disk = disk or Disk()
    with (
        atomic_replacement(target, disk, replace=replace) as temporary,
        open(open_regular(checkpoint.state_file, os.O_RDONLY, real_parents=1), "rb") as source,
        disk.create(temporary) as file,
    ):
        writer = DigestingWriter(file)
        while chunk := source.read(READ_CHUNK_BYTES):
            writer.write(chunk)
        disk.sync(file)
        if writer.record() != checkpoint.manifest.files[STATE_FILE]:
            raise CheckpointInvalidError(checkpoint.path, f"{STATE_FILE} has changed")


def digest_of(path: Path, *, direct: bool) -> FileRecord:
    """Return size and digest of one file; ``direct`` reads past the page cache. Raises OSError."""
    # O_NOFOLLOW: a link would let a manifest vouch for bytes outside its directory.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if direct:
        try:
            direct_flag = getattr(os, "O_DIRECT", 0)
            return _digest_opened(os.open(path, flags | direct_flag), READ_CHUNK_BYTES)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return digest_of_opened(os.open(path, flags))


def digest_of_opened(descriptor: int) -> FileRecord:
    """Return size and digest of an opened file, from here to its end; close it. Raises OSError."""
    return _digest_opened(descriptor, CACHED_CHUNK_BYTES)


def _digest_opened(descriptor: int, chunk_bytes: int) -> FileRecord:
    with open(descriptor, "rb", buffering=0) as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        digest, size = xxhash.xxh3_128(), 0
        # No larger than the file: for a direct read the kernel fills in every page of the buffer.
        blocks = facts.st_size // DIRECT_BLOCK_BYTES + 1
        buffer_bytes = min(chunk_bytes, blocks * DIRECT_BLOCK_BYTES)
        with mmap.mmap(-1, buffer_bytes) as aligned, memoryview(aligned) as buffer:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                size += count
    return FileRecord(bytes=size, xxh3_128=digest.hexdigest())
