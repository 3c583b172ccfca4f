"""A published checkpoint: its directory, its manifest, its place in the order of checkpoints."""

import errno
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.manifest import (
    MAXIMUM_MANIFEST_BYTES,
    Manifest,
    json_metrics,
)
from orchestrator.errors import CheckpointInvalidError, ConfigError, UnreadableError

STATE_FILE = "state.pt"

MANIFEST_FILE = "manifest.json"

PIN_FILE = "pinned"

CONTENT_FOLDER = "content"

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
        raise reading_problem(path, MANIFEST_FILE, error) from None
    except ValueError as error:
        raise CheckpointInvalidError(path, str(error)) from None
    if manifest.step != order_of(path.name)[0]:
        raise CheckpointInvalidError(path, f"manifest.json says step {manifest.step}")
    is_plain = manifest.framework is None and manifest.adopted is None
    if is_plain and STATE_FILE not in manifest.files:
        raise CheckpointInvalidError(path, f"manifest.json does not name {STATE_FILE}")
    return Checkpoint(path, manifest, pinned=(path / PIN_FILE).exists())


def reading_problem(
    path: Path, name: str, error: OSError
) -> CheckpointInvalidError | UnreadableError:
    """What an error on reading says: that the checkpoint is bad, or nothing about it."""
    if error.errno == errno.ENOENT:
        return CheckpointInvalidError(path, f"{name} is missing")
    if error.errno == errno.ELOOP:
        return CheckpointInvalidError(path, f"{name} is a symbolic link")
    if error.errno in _DAMAGE:
        return CheckpointInvalidError(path, f"{name} cannot be read: {error.strerror}")
    return UnreadableError(path / name, error)
