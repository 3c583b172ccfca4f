"""Conversion of values to a form that ``torch.load`` accepts by default, and back.

``torch.load(weights_only=True)``, the safe load, refuses NumPy scalars and arrays, paths,
namespaces, default dicts and dates. They are converted when they are saved, so that a resume after
a crash never meets that refusal. A converted value is a dict whose key ``__orchestrator__`` names
its type.
"""

import argparse
import io
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.optim.swa_utils import SWALR

from orchestrator.errors import FreedStorageError, UnstorableError
from orchestrator.training.exits import without_warnings
from orchestrator.training.state.tensor_kinds import (
    has_its_storage,
    is_plain,
    is_uninitialized,
    uninitialized,
)

TAG = "__orchestrator__"
_ATOMS = (bool, int, float, complex, str, bytes, type(None), torch.device, torch.dtype, torch.Size)
_CONTAINERS = (dict, OrderedDict, list, tuple, set)


def to_plain(value: Any, where: str) -> Any:
    """Return ``value`` with everything converted that the safe load refuses.

    Containers that need no conversion are returned as they are, so that tied tensors stay tied and
    an OrderedDict keeps its attributes. Raises UnstorableError for a value that has no safe form;
    ``where`` is its name in the message.
    """
    kind = type(value)
    if kind is bytes and not value:
        return {TAG: "bytes", "value": ""}  # the safe load refuses empty bytes
    if kind is int and value.bit_length() > 2000:
        raise UnstorableError(where, "it is an integer of more than 2000 bits")
    if kind in _ATOMS:
        return value
    if kind in (torch.Tensor, torch.nn.Parameter):
        _check_tensor(value, where)
        # Attributes that a script has set on it are dropped: the safe load refuses most types.
        return value.detach().requires_grad_(value.requires_grad) if vars(value) else value
    if kind in _CONTAINERS:
        return _container_to_plain(value, where)
    if kind is defaultdict:
        factory = value.default_factory
        if factory is not None and factory not in _FACTORIES.values():
            raise UnstorableError(where, f"it is a defaultdict of {factory!r}")
        content = {TAG: "defaultdict", "factory": getattr(factory, "__name__", None)}
        return content | {"value": to_plain(dict(value), where)}
    if isinstance(value, PurePath):
        return {TAG: "path", "value": str(value)}
    if isinstance(value, argparse.Namespace):
        return {TAG: "namespace", "value": to_plain(vars(value), where)}
    if kind is datetime:
        return {TAG: "datetime", "value": value.isoformat()}
    if kind is timedelta:
        return {TAG: "timedelta", "value": (value.days, value.seconds, value.microseconds)}
    # Subclasses of plain types (an IntEnum, a str of some library) become the plain value.
    if _is_numpy(value):
        return _numpy_to_plain(value, where)
    if isinstance(value, str):
        return str.__str__(value)  # str() of an Enum member would give its name
    for base in (int, float):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, torch.Tensor):
        if is_uninitialized(value):
            parameter = isinstance(value, torch.nn.Parameter)
            return {TAG: "uninitialized", "value": "parameter" if parameter else "buffer"}
        raise UnstorableError(
            where, f"it is a tensor of the class {kind.__module__}.{kind.__name__}"
        )
    raise UnstorableError(where, f"it is of the class {kind.__module__}.{kind.__qualname__}")


def from_plain(value: Any) -> Any:
    """Return the original of what ``to_plain`` made; subclasses of plain types stay plain."""
    if type(value) in (dict, OrderedDict):
        if value.get(TAG) == "defaultdict":
            return defaultdict(_FACTORIES.get(value["factory"]), from_plain(value["value"]))
        if TAG in value:
            return _RESTORE[value[TAG]](value["value"])
        restored = {key: from_plain(item) for key, item in value.items()}
        changed = any(restored[key] is not value[key] for key in value)
        return like(value, restored) if changed else value
    if type(value) in (list, tuple, set):
        items = [from_plain(item) for item in value]
        changed = any(a is not b for a, b in zip(items, value, strict=True))
        return type(value)(items) if changed else value
    return value


def copy_containers(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Copy the containers of a value; its tensors stay the same and are added to ``tensors``."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return value
    if type(value) in (dict, OrderedDict):
        return like(value, {key: copy_containers(item, tensors) for key, item in value.items()})
    if type(value) in (list, tuple, set):
        return type(value)(copy_containers(item, tensors) for item in value)
    return value


def _check_tensor(tensor: torch.Tensor, where: str) -> None:
    if is_plain(tensor):
        if not has_its_storage(tensor):
            raise FreedStorageError(where)
        return
    kind = (tensor.layout, tensor.dtype, tensor.device.type, tensor.is_nested, tensor.is_quantized)
    if kind in _STORABLE_KINDS:
        return
    buffer = io.BytesIO()
    try:
        with without_warnings():
            torch.save(tensor, buffer)
            buffer.seek(0)
            torch.load(buffer, weights_only=True)
    except Exception as error:  # torch raises many classes
        layout = "nested" if tensor.is_nested else tensor.layout
        raise UnstorableError(
            where, f"torch.save and torch.load refuse a {layout} tensor of {tensor.dtype} ({error})"
        ) from error
    _STORABLE_KINDS.add(kind)


def _container_to_plain(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        changes = {}
        for key, item in value.items():
            if not _is_plain_key(key):
                raise UnstorableError(f"{where}[{key!r}]", "its key is not a plain value")
            plain = to_plain(item, f"{where}[{key!r}]")
            if plain is not item:
                changes[key] = plain
        return like(value, {**value, **changes}) if changes else value
    items = [to_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if all(a is b for a, b in zip(items, value, strict=True)):
        return value
    if type(value) is set and any(isinstance(item, (dict, set)) for item in items):
        return {TAG: "set", "value": items}
    return type(value)(items)


def _is_plain_key(key: Any) -> bool:
    if type(key) is tuple:
        return all(map(_is_plain_key, key))
    return type(key) in _ATOMS and key != b"" and key != TAG


def like(original: Any, content: dict[Any, Any]) -> Any:
    """Return ``content`` in a dict of the type of ``original``, with its attributes.

    For example, the state_dict of a module keeps the versions of its layers in an attribute.
    """
    if type(original) is dict:
        return content
    result = type(original)(content)
    if hasattr(original, "__dict__"):
        result.__dict__.update(original.__dict__)
    return result


def _is_numpy(value: Any) -> bool:
    # Not imported here: torch works without NumPy, and so may the script.
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.generic, numpy.ndarray))


def _numpy_to_plain(value: Any, where: str) -> Any:
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.generic):
        item = value.item()
        if isinstance(item, numpy.generic) or value.dtype.kind in "mM":
            raise UnstorableError(where, f"it is of the class numpy.{type(value).__name__}")
        return to_plain(item, where)
    if type(value) is not numpy.ndarray:
        raise UnstorableError(where, f"it is of the class numpy.{type(value).__name__}")
    try:
        native = value.astype(value.dtype.newbyteorder("="))
        return {
            TAG: "ndarray",
            "value": torch.from_numpy(numpy.ascontiguousarray(native).reshape(value.shape)),
        }
    except TypeError as error:
        raise UnstorableError(where, f"it is a NumPy array of {value.dtype} ({error})") from None


_STORABLE_KINDS: set[Any] = set()
"""Kinds of tensors that torch.save has stored in this process, and torch.load has loaded."""

_FACTORIES: dict[str | None, Any] = {
    kind.__name__: kind for kind in (int, float, list, dict, set, str, tuple, bool)
}

# The two functions that SWALR keeps in its state up to torch 2.9.
_ANNEALING: dict[str, Any] = {
    name: getattr(SWALR, name)
    for name in ("_cosine_anneal", "_linear_anneal")
    if hasattr(SWALR, name)
}

_RESTORE: dict[str, Callable[[Any], Any]] = {
    "path": Path,
    "bytes": lambda value: b"",
    "set": lambda value: {from_plain(item) for item in value},
    "namespace": lambda value: argparse.Namespace(**from_plain(value)),
    "datetime": datetime.fromisoformat,
    "timedelta": lambda value: timedelta(*value),
    "annealing": _ANNEALING.__getitem__,
    "uninitialized": uninitialized,
    "ndarray": lambda tensor: tensor.numpy(),
}
