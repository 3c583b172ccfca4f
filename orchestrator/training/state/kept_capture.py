"""What objects of a script hold, captured as plain values, tensors and dicts that name a kind.

A walk follows attributes and containers; kept_restore.py walks in the same order.
"""

import enum
import functools
import logging
import operator
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from types import (
    BuiltinFunctionType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import torch

from orchestrator.errors import UnstorableError
from orchestrator.training.state import arrays, generators
from orchestrator.training.state.columns import (
    LEAST_ITEMS,
    is_found_by_name,
    is_named_tuple,
    name_of_class,
    pack,
)
from orchestrator.training.state.plain_values import to_plain

# They do not change, and a resumed script has them already.
CODE = (
    *(FunctionType, BuiltinFunctionType, MethodType, ModuleType, type, functools.partial),
    *(logging.Logger, MappingProxyType),
)
LEAVES = (type(None), bool, int, float, complex, str, bytes)
BUILT_IN: dict[str, Callable[[], Any]] = {
    kind.__name__: kind for kind in (list, dict, set, deque, OrderedDict, Counter)
}
_CONTAINERS = (list, dict, set, deque)
# Their classes only hold data; other modules of Python have classes that act.
_DATA_MODULES = ("argparse", "collections")

Node = Any
"""A plain value, a tensor, or a dict that names its ``kind``."""


class Capture:
    """One walk through an object, in which everything that it meets twice is stored once."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._met: list[Any] = []  # so that no id is used again
        self.stateful: list[Any] = []
        """The objects with a ``state_dict()`` that were met."""

    def node(self, value: Any, where: str) -> Node:
        """Return the node of a value; ``where`` is its name in messages.

        Raises:
            UnstorableError: It, or part of it, has no form that can be stored and put back.
        """
        if type(value) in LEAVES:
            return value
        if isinstance(value, enum.Flag):  # several flags together have no name
            return {"kind": "flag", "class": _findable(value, where), "value": value.value}
        if isinstance(value, enum.Enum):
            return {"kind": "enum", "class": _findable(value, where), "name": value.name}
        if isinstance(value, CODE) or arrays.is_dtype(value) or _is_used_up(value):
            return {"kind": "code"}
        if isinstance(value, tuple):
            return self._tuple(value, where)
        if arrays.is_scalar(value):
            return {"kind": "scalar", "value": arrays.as_tensor(value, where)}
        if isinstance(value, LEAVES):
            return value
        if id(value) in self._numbers:
            return {"kind": "again", "number": self._numbers[id(value)]}
        self._numbers[id(value)] = len(self._met)
        self._met.append(value)
        return self._changeable(value, where)

    def _tuple(self, value: tuple[Any, ...], where: str) -> Node:
        items = [self.node(item, f"{where}[{i}]") for i, item in enumerate(value)]
        named = _findable(value, where) if is_named_tuple(type(value)) else None
        return {"kind": "tuple", "class": named, "items": items}

    def _changeable(self, value: Any, where: str) -> Node:
        if isinstance(value, torch.Tensor):
            to_plain(value, where)  # what cannot be stored is refused by this name
            return value
        if arrays.is_array(value):
            return {"kind": "array", "value": arrays.as_tensor(value, where)}
        if generators.is_generator(value):
            return {"kind": "generator", "value": generators.state_of(value)}
        if has_state_dict(value):
            self.stateful.append(value)
            return {"kind": "stateful", "value": value.state_dict()}
        if isinstance(value, _CONTAINERS):
            return self._container(value, where)
        kind: Any = type(value)
        if _is_plain_class(kind):
            node = {"kind": "object", "class": name_of_class(kind)}
            return node | {"attributes": self._attributes(value, where)}
        # Such as a path or a date, which do not change; what cannot be stored is refused here.
        to_plain(value, where)
        return value

    def _container(self, value: Any, where: str) -> Node:
        node: dict[str, Any] = {"kind": "container", "class": class_of_container(value)}
        if getattr(value, "__dict__", None):
            node["attributes"] = self._attributes(value, where)
        if isinstance(value, dict):
            for key in value:
                to_plain({key: None}, where)
            node["keys"] = list(value)
            return node | self._items(list(value.values()), where, node["keys"])
        if isinstance(value, deque):
            node["maxlen"] = value.maxlen
        ordered = sorted(value, key=repr) if isinstance(value, set) else list(value)
        return node | self._items(ordered, where)

    def _items(
        self, items: list[Any], where: str, keys: Iterable[Any] | None = None
    ) -> dict[str, Any]:
        column = pack(items) if len(items) >= LEAST_ITEMS else None
        if column is not None:
            return {"column": column}
        places = zip(range(len(items)) if keys is None else keys, items, strict=True)
        return {"items": [self._item(item, f"{where}[{key!r}]") for key, item in places]}

    def _item(self, value: Any, where: str) -> Node:
        node = self.node(value, where)
        if type(node) is dict and node["kind"] == "object":
            _findable(value, where)  # a resumed script's container may be empty
            if (problem := why_not_made(type(value))) is not None:
                raise UnstorableError(where, f"its class {type(value).__qualname__} {problem}")
        return node

    def _attributes(self, value: Any, where: str) -> dict[str, Node]:
        return {name: self.node(item, f"{where}.{name}") for name, item in vars(value).items()}


def has_state_dict(value: Any) -> bool:
    """Return whether the class of an object has both methods; to ask the object may call it."""
    kind = type(value)
    return hasattr(kind, "state_dict") and hasattr(kind, "load_state_dict")


def class_of_container(value: Any) -> str:
    """Return the name of a built-in container, or the full name of another class."""
    kind: Any = type(value)
    return kind.__name__ if kind in BUILT_IN.values() else name_of_class(kind)


class _Plain:
    """An object of this size has nothing but attributes; one with C state is larger."""


@functools.cache
def _is_plain_class(kind: type) -> bool:
    """Return whether an object of this class has no state besides its ``__dict__``."""
    members = (member for base in kind.__mro__ for member in vars(base).values())
    has_slots = any(isinstance(member, MemberDescriptorType) for member in members)
    has_dict = kind.__dictoffset__ != 0
    return has_dict and kind.__basicsize__ == _Plain.__basicsize__ and not has_slots


def why_not_made(kind: type) -> str | None:
    """Return why no object of this class is made for what a checkpoint names; None if one is.

    A checkpoint may be a colleague's, and its attributes with the right class delete any file.
    """
    module = kind.__module__.partition(".")[0]
    if not _is_plain_class(kind):
        return "has state besides its attributes"
    if hasattr(kind, "__del__"):
        return "acts when an object of it goes"
    if module in sys.stdlib_module_names and module not in _DATA_MODULES:
        return "is one of Python's own"
    return None


def _findable(value: Any, where: str) -> str:
    if not is_found_by_name(type(value)):
        problem = f"its class {type(value).__qualname__} is not at the top level of a module"
        raise UnstorableError(where, problem)
    return name_of_class(type(value))


def _is_used_up(value: Any) -> bool:
    """Return whether this is an iterator with nothing left, such as Gymnasium's vectors hold.

    An empty object of a script's class may be filled again.
    """
    is_built_in = isinstance(value, Iterator) and not _is_plain_class(type(value))
    return is_built_in and operator.length_hint(value, 1) == 0
