"""Values as ``torch.load`` accepts them with its safe default, and back.

``weights_only=True`` refuses NumPy scalars and arrays, paths, namespaces, default dicts and dates.
They are converted when saving, so that the refusal never comes after a crash. A converted value is
a dict whose key ``__orchestrator__`` names its type.
"""

import argparse
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path, PurePath
from typing import Any

import torch

from orchestrator.errors import UnstorableError

TAG = "__orchestrator__"
_ATOMS = (bool, int, float, complex, str, bytes, type(None), torch.device, torch.dtype, torch.Size)
_CONTAINERS = (dict, OrderedDict, list, tuple, set)


def to_plain(value: Any, where: str) -> Any:
    """``value`` with everything converted that the safe load refuses.

    Containers that need no conversion are returned as they are, so that tied tensors stay tied and
    an OrderedDict keeps its attributes. ``where`` names the value in the error: raises
    UnstorableError for what has no safe form.
    """
    kind = type(value)
    if kind in _ATOMS or (
        isinstance(value, torch.Tensor) and kind in (torch.Tensor, torch.nn.Parameter)
    ):
        return value
    if kind in _CONTAINERS:
        return _container_to_plain(value, where)
    if kind is defaultdict:
        return to_plain(dict(value), where)
    if isinstance(value, PurePath):
        return {TAG: "path", "value": str(value)}
    if isinstance(value, argparse.Namespace):
        return {TAG: "namespace", "value": to_plain(vars(value), where)}
    if kind is datetime:
        return {TAG: "datetime", "value": value.isoformat()}
    if kind is timedelta:
        return {TAG: "timedelta", "value": (value.days, value.seconds, value.microseconds)}
    # Subclasses of plain types (an IntEnum, a str of some library) count as what they contain.
    if _is_numpy(value):
        return _numpy_to_plain(value, where)
    if isinstance(value, str):
        return str.__str__(value)  # str() of an Enum member would give its name
    for base in (int, float):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, torch.Tensor):
        raise UnstorableError(
            where, f"it is a tensor of the class {kind.__module__}.{kind.__name__}"
        )
    raise UnstorableError(where, f"it is of the class {kind.__module__}.{kind.__qualname__}")


def from_plain(value: Any) -> Any:
    """The inverse of ``to_plain``, but for subclasses, which come back as what they contain."""
    if type(value) in (dict, OrderedDict):
        if TAG in value:
            return _RESTORE[value[TAG]](value["value"])
        restored = {key: from_plain(item) for key, item in value.items()}
        changed = any(restored[key] is not value[key] for key in value)
        return type(value)(restored) if changed else value
    if type(value) in (list, tuple, set):
        items = [from_plain(item) for item in value]
        changed = any(a is not b for a, b in zip(items, value, strict=True))
        return type(value)(items) if changed else value
    return value


def _container_to_plain(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        converted = {}
        for key, item in value.items():
            if type(key) not in _ATOMS and type(key) is not tuple:
                raise UnstorableError(f"{where}[{key!r}]", "its key is no plain value")
            converted[key] = to_plain(item, f"{where}[{key!r}]")
        if all(converted[key] is value[key] for key in value):
            return value
        return type(value)(converted)
    items = [to_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if all(a is b for a, b in zip(items, value, strict=True)):
        return value
    return type(value)(items)


def _is_numpy(value: Any) -> bool:
    # NumPy is asked for only where the script has loaded it: torch does without.
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.generic, numpy.ndarray))


def _numpy_to_plain(value: Any, where: str) -> Any:
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.generic):
        return to_plain(value.item(), where)
    try:
        return {TAG: "ndarray", "value": torch.from_numpy(numpy.array(value))}
    except TypeError as error:
        raise UnstorableError(where, f"it is a NumPy array of {value.dtype} ({error})") from None


_RESTORE: dict[str, Callable[[Any], Any]] = {
    "path": Path,
    "namespace": lambda value: argparse.Namespace(**from_plain(value)),
    "datetime": datetime.fromisoformat,
    "timedelta": lambda value: timedelta(*value),
    "ndarray": lambda tensor: tensor.numpy(),
}
