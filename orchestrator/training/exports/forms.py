"""The forms in which a checkpoint is exported whose tensors are in pieces, and DCP for any."""

from pathlib import Path

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.system.durable import Disk, atomic_replacement
from orchestrator.training.exports.torch_file import write_torch_file
from orchestrator.training.exports.whole_state import WholeState
from orchestrator.training.formats.export import classic_content, header_text
from orchestrator.training.formats.safetensors import write_safetensors


def export_state_dict(checkpoint: Checkpoint, name: str, target: Path, *, replace: bool) -> None:
    """Write the state of one registered object alone. Raises ConfigError, OSError."""
    whole = WholeState(checkpoint)
    write_torch_file(whole, whole.state_of(name), target, replace=replace)


def export_safetensors(checkpoint: Checkpoint, name: str, target: Path, *, replace: bool) -> None:
    """Write the state of one registered object as safetensors. Raises ConfigError, OSError."""
    whole = WholeState(checkpoint)
    text = header_text(checkpoint.manifest)
    state = whole.state_of(name)
    with atomic_replacement(target, Disk(), replace=replace) as file:
        write_safetensors(state, file, text, whole.filled)


def export_classic(checkpoint: Checkpoint, target: Path, *, replace: bool) -> None:
    """Write everything in the classic form. Raises ConfigError, OSError."""
    whole = WholeState(checkpoint)
    write_torch_file(whole, classic_content(whole.content), target, replace=replace)


def export_dcp(checkpoint: Checkpoint, target: Path) -> None:
    """Write what the classic form has for torch.distributed.checkpoint.

    Raises ConfigError, OSError.
    """
    # Its import takes a while.
    from orchestrator.training.exports.dcp import write_dcp

    whole = WholeState(checkpoint)
    write_dcp(whole, classic_content(whole.content), target)
