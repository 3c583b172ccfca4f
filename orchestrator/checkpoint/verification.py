"""Reading checkpoints back: what a directory claims to be, and whether its bytes are that."""

import contextlib
import errno
import mmap
import os
import re
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from orchestrator.checkpoint.manifest import (
    MAXIMUM_MANIFEST_BYTES,
    FileRecord,
    Manifest,
    json_metrics,
)
from orchestrator.errors import CheckpointInvalidError, ConfigError, UnreadableError
from orchestrator.system.durable import DIRECT_BLOCK_BYTES, Disk, arriving

STATE_FILE = "state.pt"
MANIFEST_FILE = "manifest.json"
PIN_FILE = "pinned"
CONTENT_FOLDER = "content"
READ_CHUNK_BYTES = 16 << 20
# What is read into the page cache is copied from there: at best while the processor has it too.
CACHED_CHUNK_BYTES = 1 << 20
# From this size on a thread of its own has the digest sooner.
BESIDE_BYTES = 1 << 20

# A link or directory in a file's place, and a disk that has lost the bytes.
_DAMAGE = {errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.EIO, errno.ENXIO}

_NAME = re.compile(r"step-(\d{12})(?:-(\d+))?")


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: its directory, its manifest, and whether a person pinned it."""

    path: Path
    manifest: Manifest
    pinned: bool

    @property
    def name(self) -> str:
        """The directory's name, unique within the run."""
        return self.path.name

    @property
    def order(self) -> tuple[int, int]:
        """Step, then sequence among checkpoints of one step: the order in which they were made."""
        return order_of(self.path.name)

    @property
    def state_file(self) -> Path:
        """The plain ``torch.save`` file. Raises ConfigError for what others have saved."""
        others = self.manifest.framework or (self.manifest.adopted and "the script itself")
        if others:
            where = self.content if self.manifest.framework else self.shown_path
            raise ConfigError(
                f"cannot take a {STATE_FILE} from {self.path}: {others} has saved it in its own "
                f"form; copy its files from {where}, or load them from there"
            )
        return self.path / STATE_FILE

    @property
    def content(self) -> Path:
        """The directory in which the files of the manifest lie."""
        adopted = self.manifest.adopted
        if adopted is not None and not adopted.kept:
            return Path(adopted.path) if adopted.is_directory else Path(adopted.path).parent
        is_plain = adopted is None and self.manifest.framework is None
        return self.path if is_plain else self.path / CONTENT_FOLDER

    @property
    def resume_path(self) -> Path:
        """What a trainer is told to resume from."""
        if self.manifest.adopted is not None:
            return Path(self.manifest.adopted.path)
        return self.state_file if self.manifest.framework is None else self.content

    @property
    def shown_path(self) -> Path:
        """Where people find it: the directory, or what the script itself has saved."""
        adopted = self.manifest.adopted
        if adopted is None or adopted.kept:
            return self.path
        return Path(adopted.path)

    @property
    def facts(self) -> dict[str, Any]:
        """What the journal says when it is published."""
        manifest = self.manifest
        return {
            "path": str(self.path),
            "adopted": manifest.adopted.path if manifest.adopted else None,
            "step": manifest.step,
            "epoch": manifest.epoch,
            "reason": manifest.reason,
            "bytes": manifest.total_bytes,
            "healthy": manifest.healthy,
            "metrics": json_metrics(manifest.metrics),
        }


class DigestingWriter:
    """A binary file for writing that computes the digest and size of what passes through."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = xxhash.xxh3_128()
        self._bytes = 0
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write all of ``data``. Raises OSError, kept in ``error`` too: torch hides the errno."""
        # Not len(): memory may consist of items larger than a byte.
        count = memoryview(data).nbytes
        with self._digesting(data, count):
            try:
                self._file.write(data)
            except OSError as error:
                self.error = self.error or error
                raise
        self._bytes += count
        return count

    @contextlib.contextmanager
    def _digesting(self, data: bytes | memoryview, count: int) -> Iterator[None]:
        """Have ``data`` digested when the block ends, a large piece in a thread meanwhile."""
        if count < BESIDE_BYTES:
            yield
            self._digest.update(data)
            return
        # It is ahead of the disk, and faults shared memory in for it.
        thread = threading.Thread(target=self._digest.update, args=(data,))
        try:
            thread.start()
        except RuntimeError:  # the system gives no more threads
            yield
            self._digest.update(data)
            return
        try:
            yield
        finally:
            thread.join()

    def flush(self) -> None:
        """For callers that expect a file; the bytes reach the disk when the store syncs them."""

    def record(self) -> FileRecord:
        """Size and digest of what has been written."""
        return FileRecord(bytes=self._bytes, xxh3_128=self._digest.hexdigest())


def is_checkpoint_name(name: str) -> bool:
    """Whether a directory of this name claims to be a checkpoint."""
    return _NAME.fullmatch(name) is not None


def order_of(name: str) -> tuple[int, int]:
    """Step and sequence from a directory's name, in which number 2 of step 7 is ``...007-2``."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is not the name of a checkpoint")
    return int(match[1]), int(match[2] or 1)


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in one directory, without looking at the bytes of its state.

    Raises CheckpointInvalidError when the directory or its manifest is not what it must be, and
    UnreadableError when the system does not let us see.
    """
    try:
        if path.is_symlink():
            raise CheckpointInvalidError(path, "it is a symbolic link, not a directory")
        if not stat.S_ISREG((path / MANIFEST_FILE).stat().st_mode):
            raise CheckpointInvalidError(path, "manifest.json is not a regular file")
        with open(path / MANIFEST_FILE, "rb") as file:
            text = file.read(MAXIMUM_MANIFEST_BYTES)
        manifest = Manifest.from_json(text)
    except OSError as error:
        raise _judged(path, MANIFEST_FILE, error) from None
    except ValueError as error:
        raise CheckpointInvalidError(path, str(error)) from None
    if manifest.step != order_of(path.name)[0]:
        raise CheckpointInvalidError(path, f"manifest.json says step {manifest.step}")
    is_plain = manifest.framework is None and manifest.adopted is None
    if is_plain and STATE_FILE not in manifest.files:
        raise CheckpointInvalidError(path, f"manifest.json does not name {STATE_FILE}")
    return Checkpoint(path, manifest, pinned=(path / PIN_FILE).exists())


def verify(checkpoint: Checkpoint, *, to_load: bool = False) -> None:
    """Read every byte and compare with the manifest.

    What counts is what the disk has, so that the bytes are read past the page cache, which training
    needs itself; ``to_load`` reads them into it, since the very same are loaded next. Raises
    CheckpointInvalidError when they differ, UnreadableError when it cannot be told.
    """
    verify_files(checkpoint, checkpoint.content, to_load=to_load)


def verify_files(checkpoint: Checkpoint, folder: Path, *, to_load: bool) -> None:
    """The same for files of these names in another folder."""
    for name, record in checkpoint.manifest.files.items():
        if any(above.is_symlink() for above in _folders_of(checkpoint, name)):
            reason = f"{name} lies behind a symbolic link"
            raise CheckpointInvalidError(checkpoint.path, reason)
        try:
            actual = digest_of(folder / name, direct=not to_load)
        except OSError as error:
            raise _judged(checkpoint.path, name, error) from None
        if actual.bytes != record.bytes:
            reason = f"{name} has {actual.bytes} bytes, not {record.bytes}"
            raise CheckpointInvalidError(checkpoint.path, reason)
        if actual.xxh3_128 != record.xxh3_128:
            raise CheckpointInvalidError(checkpoint.path, f"{name} has changed: wrong digest")


def _folders_of(checkpoint: Checkpoint, name: str) -> list[Path]:
    """The folders between the checkpoint's directory and the file of this name."""
    return [f for f in (checkpoint.content / name).parents if checkpoint.path in f.parents]


def export_state(
    checkpoint: Checkpoint, target: Path, disk: Disk | None = None, *, replace: bool = False
) -> None:
    """Copy state.pt to ``target``, checking its digest on the way; only ``replace`` overwrites.

    Raises CheckpointInvalidError when the bytes are not the ones that were saved, and OSError.
    """
    disk = disk or Disk()
    with (
        arriving(target, disk, replace=replace) as temporary,
        open(checkpoint.state_file, "rb") as source,
        disk.create(temporary) as file,
    ):
        writer = DigestingWriter(file)
        while chunk := source.read(READ_CHUNK_BYTES):
            writer.write(chunk)
        disk.sync(file)
        if writer.record() != checkpoint.manifest.files[STATE_FILE]:
            raise CheckpointInvalidError(checkpoint.path, f"{STATE_FILE} has changed")


def _judged(path: Path, name: str, error: OSError) -> CheckpointInvalidError | UnreadableError:
    """What an error on reading says: that the checkpoint is bad, or nothing about it."""
    if error.errno == errno.ENOENT:
        return CheckpointInvalidError(path, f"{name} is missing")
    if error.errno == errno.ELOOP:
        return CheckpointInvalidError(path, f"{name} is a symbolic link")
    if error.errno in _DAMAGE:
        return CheckpointInvalidError(path, f"{name} cannot be read: {error.strerror}")
    return UnreadableError(path / name, error)


def digest_of(path: Path, *, direct: bool) -> FileRecord:
    """Size and digest of one file; ``direct`` reads past the page cache. Raises OSError."""
    # O_NOFOLLOW: a link would let a manifest vouch for bytes outside its directory.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if direct:
        try:
            direct_flag = getattr(os, "O_DIRECT", 0)
            return _digest_opened(os.open(path, flags | direct_flag), READ_CHUNK_BYTES)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return _digest_opened(os.open(path, flags), CACHED_CHUNK_BYTES)


def _digest_opened(descriptor: int, chunk_bytes: int) -> FileRecord:
    with open(descriptor, "rb", buffering=0) as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        digest, size = xxhash.xxh3_128(), 0
        # No larger than the file: a direct read has the kernel fill in every page of its buffer.
        blocks = facts.st_size // DIRECT_BLOCK_BYTES + 1
        buffer_bytes = min(chunk_bytes, blocks * DIRECT_BLOCK_BYTES)
        with mmap.mmap(-1, buffer_bytes) as aligned, memoryview(aligned) as buffer:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                size += count
    return FileRecord(bytes=size, xxh3_128=digest.hexdigest())
