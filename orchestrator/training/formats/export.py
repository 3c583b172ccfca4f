"""Export of a checkpoint's content to files that other programs read."""

from pathlib import Path
from typing import IO, Any, cast

import torch

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.digesting_writer import DigestingWriter
from orchestrator.errors import ConfigError
from orchestrator.system.durable import Disk, atomic_replacement
from orchestrator.training.formats.classic import memory_for, refuse_hostile
from orchestrator.training.formats.safetensors import write_safetensors
from orchestrator.training.state.loaded_state import first_line, load
from orchestrator.training.state.progress import RESERVED, SUFFIX

# Entries that scripts expect in a classic file; a run may have no metric named loss.
_CLASSIC_DEFAULTS = {"epoch": 0, "step": 0, "loss": None}
_NOT_CLASSIC = RESERVED - _CLASSIC_DEFAULTS.keys()


def export_state_dict(checkpoint: Checkpoint, name: str, target: Path, *, replace: bool) -> None:
    """Write the state of one registered object alone. Raises ConfigError, OSError."""
    save_durably(_state_of(checkpoint, name), target, replace=replace)


def export_safetensors(checkpoint: Checkpoint, name: str, target: Path, *, replace: bool) -> None:
    """Write the state of one registered object as safetensors.

    Raises ConfigError if that state is not tensors by name, and OSError.
    """
    state, manifest = _state_of(checkpoint, name), checkpoint.manifest
    text = {"run_id": manifest.run_id, "step": str(manifest.step), "epoch": str(manifest.epoch)}
    with atomic_replacement(target, Disk(), replace=replace) as file:
        write_safetensors(state, file, text)


def export_classic(checkpoint: Checkpoint, target: Path, *, replace: bool) -> None:
    """Write the counters, the metrics and each object's state in the classic form.

    Raises ConfigError, OSError.
    """
    content = {k: v for k, v in _content_of(checkpoint).items() if k not in _NOT_CLASSIC}
    save_durably(_CLASSIC_DEFAULTS | content, target, replace=replace)


def _content_of(checkpoint: Checkpoint) -> dict[str, Any]:
    file = checkpoint.state_file
    try:
        with memory_for(file):
            content = load(file, mmap=True)
            refuse_hostile(content)
        return content
    except Exception as error:
        raise ConfigError(
            f"cannot read {file}: {first_line(error)}; the file is intact: read it with the same "
            "packages as the run that made it"
        ) from error


def _state_of(checkpoint: Checkpoint, name: str) -> Any:
    content = _content_of(checkpoint)
    if name + SUFFIX not in content:
        names = [key.removesuffix(SUFFIX) for key in content if key.endswith(SUFFIX)]
        raise ConfigError(
            f"cannot export {name} from {checkpoint.path}: it contains only "
            f"{', '.join(names) or 'counters'}; choose one of these with --name"
        )
    return content[name + SUFFIX]


def save_durably(content: Any, target: Path, *, replace: bool) -> None:
    """Save with ``torch.save`` into a file that appears whole or not at all. Raises OSError."""
    with atomic_replacement(target, Disk(), replace=replace) as file:
        writer = DigestingWriter(file)
        try:
            torch.save(content, cast(IO[bytes], writer))
        except RuntimeError:
            if writer.error is None:
                raise
            raise writer.error from None  # torch hides the error of the disk
