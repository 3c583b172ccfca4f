"""Weights as safetensors: tensors by name, and text beside them. The only home of that package."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from orchestrator.errors import ConfigError
from orchestrator.training.state.restore import first_line

# A file begins with the length of its header, which is a JSON object.
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000


def is_safetensors(path: Path) -> bool:
    """Whether a file looks like one of this format, whatever its name is."""
    try:
        with open(path, "rb") as file:
            beginning = file.read(_LENGTH_BYTES + 1)
    except OSError:
        return False
    length = int.from_bytes(beginning[:_LENGTH_BYTES], "little")
    return beginning[_LENGTH_BYTES:] == b"{" and length <= _LONGEST_HEADER


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file; names that the text says were tied are again. Raises ConfigError."""
    with _explained(f"cannot read {path}"):
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            text = file.metadata() or {}
    tied = {name: tensors[kept] for name, kept in text.items() if kept in tensors}
    return tied | tensors


def write_safetensors(state: Any, path: Path, text: Mapping[str, str]) -> None:
    """Write a module's state_dict to a file, with some ``text``. Raises ConfigError.

    Of names for one and the same tensor the first is written and the text has ``{other: first}``,
    as ``safetensors.torch.save_model`` does it; what overlaps otherwise is written apart.
    """
    what = "cannot write safetensors"
    if not isinstance(state, Mapping):
        raise ConfigError(f"{what}: it is a {type(state).__name__}, not tensors by name")
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            kind = value.layout if isinstance(value, torch.Tensor) else type(value).__name__
            raise ConfigError(
                f"{what}: {name} is of the kind {kind}, and the format holds dense tensors only; "
                "take --as state-dict"
            )
    # The bits that conjugated and negated views carry are no bytes of theirs.
    tensors, tied = _apart({k: t.resolve_conj().resolve_neg() for k, t in state.items()})
    # Read again, a text that is a tensor's name would say that they are tied.
    text = {key: value for key, value in text.items() if value not in tensors}
    with _explained(what):
        from safetensors.torch import save_file

        save_file(tensors, path, {"format": "pt", **text, **tied})


def _apart(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors, none of which shares memory with another; which names were for the same one."""
    first: dict[Any, str] = {}
    tied = {}
    for name, tensor in state.items():
        # Those without elements have no place in memory to be told by.
        view = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if (kept := first.setdefault(view if tensor.numel() else name, name)) != name:
            tied[name] = kept
    tensors = {name: tensor for name, tensor in state.items() if name not in tied}
    storages = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    for name, tensor in tensors.items():
        if storages[tensor.untyped_storage().data_ptr()] > 1 or not tensor.is_contiguous():
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
    return tensors, tied


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        raise ConfigError(
            f"{what}: the package {package} is not installed; pip install safetensors numpy"
        ) from None
    except Exception as error:  # its own class, and KeyError for a dtype that it does not know
        raise ConfigError(f"{what}: {first_line(error)}") from error
