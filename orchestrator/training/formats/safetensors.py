"""Reading and writing of safetensors files: tensors by name, and text in the header."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from orchestrator.errors import ConfigError
from orchestrator.system.regular_files import open_regular
from orchestrator.training.state.stored_files import first_line

# A file starts with the length of its header, which is a JSON object.
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins like one of this format, whatever its name is."""
    try:
        with open(open_regular(path, os.O_RDONLY, follow_link=True), "rb") as file:
            beginning = file.read(_LENGTH_BYTES + 1)
    except OSError:
        return False
    length = int.from_bytes(beginning[:_LENGTH_BYTES], "little")
    return beginning[_LENGTH_BYTES:] == b"{" and length <= _LONGEST_HEADER


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors in a file, with the ties that its text records.

    Raises ConfigError if the file cannot be read.
    """
    with _explained(f"cannot read {path}"):
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            text = file.metadata() or {}
    tied = {name: tensors[kept] for name, kept in text.items() if kept in tensors}
    return tied | tensors


def write_safetensors(state: Any, path: Path, text: Mapping[str, str]) -> None:
    """Write a module's state_dict to a file, with ``text`` in its header. Raises ConfigError.

    If several names share one tensor, the first is written and the text maps each other name to
    it, as ``safetensors.torch.save_model`` does. Tensors that overlap in part are written as
    separate copies.
    """
    problem = "cannot write safetensors"
    if not isinstance(state, Mapping):
        raise ConfigError(
            f"{problem}: it is a {type(state).__name__}, not tensors by name; use --as state-dict"
        )
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            kind = value.layout if isinstance(value, torch.Tensor) else type(value).__name__
            raise ConfigError(
                f"{problem}: {name} is of the type {kind}, and the format holds only dense "
                "tensors; use --as state-dict"
            )
    # Conjugated and negated views carry that as a flag, which is not in their bytes.
    tensors, tied = _separate({k: t.resolve_conj().resolve_neg() for k, t in state.items()})
    # A reader would take an entry whose value is the name of a tensor for a tie.
    text = {key: value for key, value in text.items() if value not in tensors}
    with _explained(problem):
        from safetensors.torch import save_file

        save_file(tensors, path, {"format": "pt", **text, **tied})


def _separate(
    state: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return tensors that share no memory, and for each tied name the name that is kept."""
    first_names: dict[Any, str] = {}
    tied = {}
    for name, tensor in state.items():
        # Empty tensors have no address by which to recognize them.
        view = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if (kept := first_names.setdefault(view if tensor.numel() else name, name)) != name:
            tied[name] = kept
    tensors = {name: tensor for name, tensor in state.items() if name not in tied}
    storages = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    for name, tensor in tensors.items():
        if storages[tensor.untyped_storage().data_ptr()] > 1 or not tensor.is_contiguous():
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
    return tensors, tied


@contextlib.contextmanager
def _explained(problem: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        raise ConfigError(
            f"{problem}: the package {package} is not installed; pip install safetensors numpy"
        ) from None
    except Exception as error:  # its own class, and KeyError for an unknown dtype
        raise ConfigError(f"{problem}: {first_line(error)}") from error
