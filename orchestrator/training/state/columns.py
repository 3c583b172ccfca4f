"""Long lists as columns: ten thousand transitions become a few tensors, and a list again.

A checkpoint of one tensor for each entry would take minutes to lay out. Entries that are alike are
stored as one array for each of their fields.
"""

import sys
from collections import OrderedDict
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch

from orchestrator.training.state.tensor_kinds import is_plain

LEAST_ITEMS = 32
Column = dict[str, Any]


def pack(items: Sequence[Any]) -> Column | None:
    """Return the column of values that are alike; None where they are not.

    They are numbers, arrays or tensors of one dtype and shape, or tuples, lists and dicts of them;
    each may be None in some of the places.
    """
    kinds = set(map(type, items))
    if type(None) in kinds and len(kinds) == 2:
        return _pack_optional(items)
    if len(kinds) != 1:
        return None
    (kind,) = kinds
    if kind in _DTYPES:
        return _pack_numbers(items, _DTYPES[kind])
    if kind is torch.Tensor:
        return _pack_tensors(items)
    if kind in (tuple, list) or (is_named_tuple(kind) and is_found_by_name(kind)):
        return _pack_rows(items, kind)
    if kind in (dict, OrderedDict):
        return _pack_dicts(items, kind)
    return _pack_arrays(items)


def unpack(column: Column) -> list[Any]:
    """Return the values of what ``pack`` returned; none of them shares memory with it."""
    values = column["values"]
    match column["kind"]:
        case "numbers":
            numbers: list[Any] = values.tolist()
            return numbers
        case "tensors":
            return [value.clone() for value in values]
        case "arrays":
            array = values.numpy()
            return [array[index, ...].copy() for index in range(len(array))]
        case "scalars":
            return list(values.numpy())
        case "optional":
            rest = iter(unpack(values))
            return [next(rest) if there else None for there in column["present"].tolist()]
        case "dicts":
            made = _BUILT_IN[column["class"]]
            rows = zip(*map(unpack, values), strict=True)
            return [made(zip(column["keys"], row, strict=True)) for row in rows]
        case "rows":
            rows = zip(*map(unpack, values), strict=True)
            if column["class"] in _BUILT_IN:
                return list(map(_BUILT_IN[column["class"]], rows))
            return list(map(named_tuple_by_name(column["class"])._make, rows))
    raise ValueError(f"a column of the kind {column['kind']!r} is unknown")


def is_named_tuple(kind: type) -> bool:
    """Return whether this is a class that collections.namedtuple or typing.NamedTuple has made."""
    return issubclass(kind, tuple) and hasattr(kind, "_fields") and hasattr(kind, "_make")


def named_tuple_by_name(name: str) -> Any:
    """Return a class of named tuples that the script has imported. Raises ValueError."""
    kind = class_by_name(name)
    if not is_named_tuple(kind):
        raise ValueError(f"{name.replace(':', '.')} is no class of named tuples")
    return kind


def name_of_class(kind: type) -> str:
    """Return the module and the name of a class, by which ``class_by_name`` finds it."""
    return f"{kind.__module__}:{kind.__qualname__}"


def class_by_name(name: str) -> Any:
    """Return a class that the script has imported; nothing is imported for it.

    Raises:
        ValueError: There is none.
    """
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type):
        raise ValueError(f"the class {name.replace(':', '.')} is not there any more")
    return found


def is_found_by_name(kind: type) -> bool:
    """Return whether ``class_by_name`` finds this class: one of a function's own is not found."""
    try:
        return class_by_name(name_of_class(kind)) is kind
    except ValueError:
        return False


def _pack_optional(items: Sequence[Any]) -> Column | None:
    values = pack([item for item in items if item is not None])
    present = torch.tensor([item is not None for item in items])
    return None if values is None else {"kind": "optional", "present": present, "values": values}


def _pack_numbers(items: Sequence[Any], dtype: torch.dtype) -> Column | None:
    try:
        return {"kind": "numbers", "values": torch.tensor(items, dtype=dtype)}
    except (RuntimeError, OverflowError, ValueError):  # an integer of more than 64 bits
        return None


def _pack_tensors(items: Sequence[torch.Tensor]) -> Column | None:
    alike = set(map(attrgetter("dtype", "shape", "is_cpu", "requires_grad"), items))
    first = items[0]
    if len(alike) > 1 or not first.is_cpu or first.requires_grad:
        return None
    if not all(map(is_plain, items)):
        return None
    return {"kind": "tensors", "values": torch.stack(list(items))}


def _pack_arrays(items: Sequence[Any]) -> Column | None:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    is_scalar = isinstance(items[0], numpy.generic)
    if not is_scalar and type(items[0]) is not numpy.ndarray:
        return None
    if len(set(map(attrgetter("dtype", "shape"), items))) > 1:
        return None
    try:
        # stack() would make a view of each first, which takes most of the time.
        joined = numpy.concatenate(items) if items[0].shape else numpy.stack(items)
        values = torch.from_numpy(joined.reshape(len(items), *items[0].shape))
    except (TypeError, ValueError):  # a dtype or a byte order that torch does not have
        return None
    return {"kind": "scalars" if is_scalar else "arrays", "values": values}


def _pack_rows(items: Sequence[Any], kind: type) -> Column | None:
    if len(set(map(len, items))) > 1 or not items[0]:
        return None
    columns = [pack(column) for column in zip(*items, strict=True)]
    name = kind.__name__ if kind in (tuple, list) else name_of_class(kind)
    return None if None in columns else {"kind": "rows", "class": name, "values": columns}


def _pack_dicts(items: Sequence[Any], kind: type) -> Column | None:
    keys = list(items[0])
    if not keys or any(type(key) is not str for key in keys):
        return None
    if any(list(item) != keys for item in items):
        return None
    columns = [pack([item[key] for item in items]) for key in keys]
    if None in columns:
        return None
    return {"kind": "dicts", "class": kind.__name__, "keys": keys, "values": columns}


_DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float64}
_BUILT_IN: dict[str, Any] = {kind.__name__: kind for kind in (tuple, list, dict, OrderedDict)}
