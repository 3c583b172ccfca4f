"""Writes what a checkpoint holds in the forms that other programs read."""

from pathlib import Path
from typing import IO, Any, cast

import torch

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.digesting_writer import DigestingWriter
from orchestrator.errors import ConfigError
from orchestrator.system.durable import Disk, atomic_replacement
from orchestrator.training.formats.safetensors import write_safetensors
from orchestrator.training.state.registry import RESERVED, SUFFIX
from orchestrator.training.state.restore import first_line, load

# What classic code looks for; a run may have given no loss.
_CLASSIC = {"epoch": 0, "step": 0, "loss": None}
_OURS = RESERVED - _CLASSIC.keys()


def export_state_dict(checkpoint: Checkpoint, name: str, target: Path, *, replace: bool) -> None:
    """The state of one registered object, bare. Raises ConfigError, OSError."""
    save_durably(_state_of(checkpoint, name), target, replace=replace)


def export_safetensors(checkpoint: Checkpoint, name: str, target: Path, *, replace: bool) -> None:
    """The same, where it is tensors by name, in that format. Raises ConfigError, OSError."""
    state, manifest, disk = _state_of(checkpoint, name), checkpoint.manifest, Disk()
    text = {"run_id": manifest.run_id, "step": str(manifest.step), "epoch": str(manifest.epoch)}
    with atomic_replacement(target, disk, replace=replace) as temporary:
        # The package makes a file that only its owner may read, and hides why it cannot make one.
        disk.create(temporary).close()
        mode = temporary.stat().st_mode
        write_safetensors(state, temporary, text)
        temporary.chmod(mode)
        with open(temporary, "rb") as file:
            disk.sync(file)


def export_classic(checkpoint: Checkpoint, target: Path, *, replace: bool) -> None:
    """The counters, the metrics and each object's state. Raises ConfigError, OSError."""
    content = {k: v for k, v in _content_of(checkpoint).items() if k not in _OURS}
    save_durably(_CLASSIC | content, target, replace=replace)


def _content_of(checkpoint: Checkpoint) -> dict[str, Any]:
    file = checkpoint.state_file
    try:
        return load(file, mmap=True)
    except Exception as error:
        raise ConfigError(
            f"cannot read {file}: {first_line(error)}; its bytes are those that were written: read "
            "it where it was made"
        ) from error


def _state_of(checkpoint: Checkpoint, name: str) -> Any:
    content = _content_of(checkpoint)
    if name + SUFFIX not in content:
        names = [key.removesuffix(SUFFIX) for key in content if key.endswith(SUFFIX)]
        raise ConfigError(
            f"cannot export {name} from {checkpoint.path}: there is none in it, but "
            f"{', '.join(names) or 'nothing at all'}; choose with --name"
        )
    return content[name + SUFFIX]


def save_durably(content: Any, target: Path, *, replace: bool) -> None:
    """``torch.save`` into a file that appears whole or not at all. Raises OSError."""
    disk = Disk()
    with (
        atomic_replacement(target, disk, replace=replace) as temporary,
        disk.create(temporary) as file,
    ):
        writer = DigestingWriter(file)
        try:
            torch.save(content, cast(IO[bytes], writer))
        except RuntimeError:
            if writer.error is None:
                raise
            raise writer.error from None  # torch hides the disk's reason
        disk.sync(file)
