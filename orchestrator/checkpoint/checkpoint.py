"""A published checkpoint: its directory, its manifest, its place in the order of publication."""

import contextlib
import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from orchestrator.checkpoint.contents import (
    STATE_FILE,
    AdoptedFiles,
    Contents,
    StateFile,
    contents_of,
    rank_file,
)
from orchestrator.checkpoint.manifest import MAXIMUM_MANIFEST_BYTES, Manifest
from orchestrator.errors import CheckpointInvalidError, UnreadableError
from orchestrator.rundir.paths import RunDir
from orchestrator.system.regular_files import read_regular

MANIFEST_FILE = "manifest.json"

PIN_FILE = "pinned"

# A link or directory in the place of a file, and a disk that has lost the bytes.
_DAMAGE = {
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EINVAL,
    errno.EFBIG,
    errno.EIO,
    errno.ENXIO,
}

_NAME = re.compile(r"step-([0-9]{12})(?:-([0-9]{1,9}))?")
_LONGER_NAME = re.compile(r"step-(?:[0-9]{13,}(?:-[0-9]+)?|[0-9]{12}-[0-9]{10,})")


@dataclass(frozen=True, order=True)
class PublicationOrder:
    """The order in which the checkpoints of a run were published.

    ``sequence`` counts the checkpoints of one step from 1: a run that resumes from an older
    checkpoint comes to the same step again.
    """

    step: int
    sequence: int

    @classmethod
    def of_name(cls, name: str) -> Self:
        """Parse a directory's name: ``step-000000000007-2`` is the second checkpoint of step 7.

        Raises ValueError for any other name.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name} is not the name of a checkpoint")
        return cls(int(match[1]), int(match[2] or 1))


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
    def order(self) -> PublicationOrder:
        """The place of this checkpoint in the order of publication."""
        return PublicationOrder.of_name(self.path.name)

    @property
    def contents(self) -> Contents:
        """What this checkpoint consists of, and where that is."""
        return contents_of(self.path, self.manifest)

    @property
    def state_file(self) -> Path:
        """The ``torch.save`` file. Raises ConfigError unless a session has saved the checkpoint."""
        return self.contents.state_file

    @property
    def resume_path(self) -> Path:
        """The path that a trainer is given to resume from."""
        return self.contents.resume_path

    @property
    def script_paths(self) -> dict[str, Path]:
        """What a script has saved together for itself, by name; empty for any other checkpoint."""
        return self.contents.script_paths if isinstance(self.contents, AdoptedFiles) else {}

    @property
    def shown_path(self) -> Path:
        """The path that people are shown: the directory, or what the script itself has saved."""
        return self.contents.shown_path


def is_checkpoint_name(name: str) -> bool:
    """Return whether a directory of this name claims to be a checkpoint."""
    return _NAME.fullmatch(name) is not None


def has_too_many_digits(name: str) -> bool:
    """Return whether a name is that of a checkpoint but for the length of its numbers."""
    return _LONGER_NAME.fullmatch(name) is not None


def checkpoint_names(run: RunDir) -> list[str]:
    """Return the names of what is named like a checkpoint, oldest first. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        matches = filter(None, map(_NAME.fullmatch, os.listdir(run.checkpoints)))
        ordered = sorted((int(match[1]), int(match[2] or 1), match[0]) for match in matches)
        return [name for _, _, name in ordered]
    return []


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the checkpoint in one directory, without the bytes of its files.

    Raises CheckpointInvalidError when the directory or its manifest is not what it must be, and
    UnreadableError when the system does not allow to find out.
    """
    try:
        if os.path.islink(path):
            raise CheckpointInvalidError(path, "it is a symbolic link, not a directory")
        text = read_regular(path / MANIFEST_FILE, MAXIMUM_MANIFEST_BYTES, real_parents=1)
        manifest = Manifest.from_json(text)
    except OSError as error:
        raise reading_problem(path, MANIFEST_FILE, error) from None
    except ValueError as error:
        raise CheckpointInvalidError(path, str(error)) from None
    if manifest.step != PublicationOrder.of_name(path.name).step:
        raise CheckpointInvalidError(path, f"manifest.json says step {manifest.step}")
    checkpoint = Checkpoint(path, manifest, pinned=os.path.exists(path / PIN_FILE))
    if isinstance(checkpoint.contents, StateFile):
        for name in (STATE_FILE, *map(rank_file, range(1, manifest.world_size))):
            if name not in manifest.files:
                raise CheckpointInvalidError(path, f"manifest.json does not name {name}")
    return checkpoint


def reading_problem(
    path: Path, name: str, error: OSError
) -> CheckpointInvalidError | UnreadableError:
    """Return what a read error means: that the checkpoint is damaged, or nothing about it."""
    if error.errno == errno.ENOENT:
        return CheckpointInvalidError(path, f"{name} is missing")
    if error.errno == errno.ELOOP:
        return CheckpointInvalidError(path, f"{name} is a symbolic link")
    if error.errno in _DAMAGE:
        return CheckpointInvalidError(path, f"{name} cannot be read: {error.strerror}")
    return UnreadableError(path / name, error)
