"""Writes a ``torch.save`` file of a state with stand-ins, one tensor at a time."""

import ctypes
from pathlib import Path
from typing import Any

import torch

from orchestrator.errors import ConfigError
from orchestrator.system.durable import Disk, atomic_replacement
from orchestrator.training.exports.whole_state import WholeState
from orchestrator.training.saving.image import InexpressibleError, freeze, lay_out


def write_torch_file(whole: WholeState, state: Any, target: Path, *, replace: bool) -> None:
    """Write ``state``, which is a part of ``whole``; the file appears whole or not at all.

    Raises ConfigError where the state has tensors that take up memory in another way, and OSError.
    """
    try:
        frozen = freeze(state)
        layout = lay_out(frozen)
    except InexpressibleError as error:
        raise ConfigError(f"cannot write {target}: the state holds {error}") from error
    storages = {o: s for o, s in zip(layout.offsets, frozen.storages, strict=True) if s.nbytes()}
    pieces = dict(layout.pieces)
    with atomic_replacement(target, Disk(), replace=replace) as file:
        # An empty piece is where a storage begins.
        for offset in sorted({*pieces, *storages}):
            file.write(pieces.get(offset, b""))
            if offset in storages:
                memory = torch.empty(0, dtype=torch.uint8).set_(storages[offset])
                file.write(bytes_of(whole.filled(memory)))


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor in the order of its elements; they live as long as it does."""
    tensor = tensor.detach().contiguous()
    size = tensor.numel() * tensor.element_size()
    if not size:
        return memoryview(b"")
    memory = (ctypes.c_char * size).from_address(tensor.data_ptr())
    memory.keeps = tensor  # type: ignore[attr-defined]
    return memoryview(memory)
