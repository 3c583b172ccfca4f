"""Writes the tensors of a state as a safetensors file, one at a time.

The file begins with the length of a JSON header, which says of each tensor its type, its shape and
where its bytes are; the tensors follow. The package of that name takes all tensors at once.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from orchestrator.errors import ConfigError
from orchestrator.system.durable import Disk, atomic_replacement
from orchestrator.training.exports.torch_file import bytes_of
from orchestrator.training.exports.whole_state import WholeState
from orchestrator.training.state.dtensors import dtype_name

TYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
# The header is filled up with blanks to a multiple of this, so that tensors are aligned.
ALIGNMENT = 8


def write_safetensors_file(
    whole: WholeState, state: Any, target: Path, text: Mapping[str, str], *, replace: bool
) -> None:
    """Write a module's state, which is a part of ``whole``, with ``text`` in the header.

    Of several names of one tensor the first has it, and the text maps each other name to it. Raises
    ConfigError where the format cannot hold a value, and OSError.
    """
    tensors, tied = _separate(_checked(state))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **_without(text, tensors), **tied}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        shape, offsets = list(tensor.shape), [begin, end]
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": shape, "data_offsets": offsets}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    with atomic_replacement(target, Disk(), replace=replace) as file:
        file.write(len(encoded).to_bytes(ALIGNMENT, "little") + encoded)
        for tensor in tensors.values():
            file.write(bytes_of(whole.filled(tensor)))


def _checked(state: Any) -> Mapping[str, torch.Tensor]:
    if not isinstance(state, Mapping):
        raise ConfigError(
            f"cannot write safetensors: it is a {type(state).__name__}, not tensors by name; use "
            "--as state-dict"
        )
    for name, value in state.items():
        is_dense = isinstance(value, torch.Tensor) and value.layout is torch.strided
        kind = dtype_name(value.dtype) if is_dense else type(value).__name__
        if not is_dense or value.dtype not in TYPES:
            raise ConfigError(
                f"cannot write safetensors: {name} is of the type {kind}, which the format does "
                "not hold; use --as state-dict"
            )
    return state


def _separate(
    state: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return each tensor once, and for each further name of one the name that has it."""
    first_names: dict[Any, str] = {}
    tied = {}
    for name, tensor in state.items():
        view = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if (kept := first_names.setdefault(view if tensor.numel() else name, name)) != name:
            tied[name] = kept
    return {name: tensor for name, tensor in state.items() if name not in tied}, tied


def _without(text: Mapping[str, str], names: Mapping[str, Any]) -> dict[str, str]:
    """Return the text without what a reader would take for a tie."""
    return {key: value for key, value in text.items() if value not in names}
