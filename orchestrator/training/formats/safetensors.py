"""Reading and writing of safetensors files: tensors by name, and text in the header."""

import contextlib
import ctypes
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from orchestrator.errors import ConfigError
from orchestrator.system.regular_files import open_regular
from orchestrator.training.state.stored_files import first_line

# A file starts with the length of its header, which is a JSON object.
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000
# The entry of the header that holds text.
_TEXT = "__metadata__"
_ALIGNMENT = 8
# The types of the format by their names in torch.
_TYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "complex64": "C64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


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


def write_safetensors(
    state: Any,
    file: BinaryIO,
    text: Mapping[str, str],
    filled: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.cpu,
) -> None:
    """Write a module's state_dict to a file, with ``text`` in its header.

    ``filled`` returns what to write of a tensor when its turn comes, on the CPU. If several names
    share one tensor, the first is written and the text maps each other name to
    it, as ``safetensors.torch.save_model`` does. Tensors that overlap in part are written as
    separate copies. Raises ConfigError where the format cannot hold the state, and OSError.
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
        if not isinstance(name, str) or name == _TEXT or _name_of(value.dtype) not in _TYPES:
            raise ConfigError(
                f"{problem}: the format has no tensor {name!r} of {value.dtype}; use --as "
                "state-dict"
            )
    # Conjugated and negated views carry that as a flag, which is not in their bytes.
    tensors, tied = _separate({k: t.resolve_conj().resolve_neg() for k, t in state.items()})
    # A reader would take an entry whose value is the name of a tensor for a tie.
    text = {key: value for key, value in text.items() if value not in tensors}
    ordered = sorted(tensors.items(), key=_order)
    with _explained(problem):  # a name may be no text of Unicode
        header = _header(ordered, {"format": "pt", **text, **tied})
    file.write(header)
    for _, tensor in ordered:
        if size := tensor.nbytes:
            on_host = filled(tensor).contiguous()
            file.write((ctypes.c_char * size).from_address(on_host.data_ptr()))


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _order(entry: tuple[str, torch.Tensor]) -> tuple[int, str]:
    """Return where a tensor comes: each begins at a multiple of the size of its items."""
    name, tensor = entry
    return -tensor.element_size(), name


def _header(tensors: Iterable[tuple[str, torch.Tensor]], text: Mapping[str, str]) -> bytes:
    """Return the beginning of a file in which the bytes of the tensors follow each other."""
    entries: dict[str, Any] = {_TEXT: text}
    end = 0
    for name, tensor in tensors:
        begin, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": _TYPES[_name_of(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    content = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    content += b" " * (-len(content) % _ALIGNMENT)
    return len(content).to_bytes(_LENGTH_BYTES, "little") + content


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
