"""Objects without a state_dict, such as replay buffers and environments, as state.

What such an object holds is followed through its attributes and containers. A resume puts it back
into the object that the script has made by then, so that names and references stay valid.
"""

import enum
import functools
import logging
import operator
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
from typing import Any, cast

import torch

from orchestrator.errors import ConfigError, UnstorableError
from orchestrator.training.state import arrays, generators
from orchestrator.training.state.columns import (
    LEAST_ITEMS,
    class_by_name,
    is_found_by_name,
    is_named_tuple,
    name_of_class,
    pack,
    unpack,
)
from orchestrator.training.state.composite import Composite
from orchestrator.training.state.plain_values import to_plain

# They do not change, and a resumed script has them already.
_CODE = (
    *(FunctionType, BuiltinFunctionType, MethodType, ModuleType, type, functools.partial),
    *(logging.Logger, MappingProxyType),
)
_CONTAINERS = (list, dict, set, deque)
_BUILT_IN: dict[str, Callable[[], Any]] = {
    kind.__name__: kind for kind in (list, dict, set, deque, OrderedDict, Counter)
}
_LEAVES = (type(None), bool, int, float, complex, str, bytes)
_MISSING = object()

KEPT = "__kept__"
"""The only key of the state of a kept object; no other object has it."""


class _Plain:
    """An object of this size has nothing but attributes; one with C state is larger."""


def _is_plain_class(kind: type) -> bool:
    """Return whether an object of this class has no state besides its ``__dict__``."""
    members = (member for base in kind.__mro__ for member in vars(base).values())
    has_slots = any(isinstance(member, MemberDescriptorType) for member in members)
    has_dict = kind.__dictoffset__ != 0
    return has_dict and kind.__basicsize__ == _Plain.__basicsize__ and not has_slots


Node = Any
"""A plain value, a tensor, or a dict that names its ``kind``."""


class Kept(Composite):
    """An object of the script with a ``state_dict()`` and a ``load_state_dict()`` made for it."""

    def __init__(self, name: str, value: Any) -> None:
        """Check that all that ``value`` holds can be stored and put back.

        Raises:
            ConfigError: It cannot.
        """
        self._name, self._value = name, value
        self._parts: list[Any] = []
        if isinstance(value, (*_LEAVES, tuple, *_CODE)):
            raise ConfigError(
                f"cannot keep {name}: a {type(value).__name__} does not change in place; keep "
                "plain values in session.state"
            )
        try:
            to_plain(self.state_dict(), name)
        except UnstorableError as error:
            raise ConfigError(
                f"cannot keep {name}: {error.where} cannot be stored, since {error.problem}; give "
                f"the class of {name} a state_dict() and a load_state_dict(), or keep only parts"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """Return what the object holds; its arrays and tensors share their memory with it.

        Raises:
            UnstorableError: Part of it has no form that can be stored.
        """
        capture = _Capture()
        try:
            state = {KEPT: capture.node(self._value, self._name)}
        except RecursionError as error:
            raise UnstorableError(self._name, "it is nested too deeply") from error
        self._parts = capture.stateful
        return state

    def parts(self) -> list[Any]:
        """Return the objects with a ``state_dict()`` that the last state contains."""
        return self._parts

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put what ``state_dict`` returned back into the object.

        Raises:
            ValueError: The object cannot hold it any more.
        """
        node = state[KEPT]
        fits = not _is_of_another_class(node, self._value)
        if not fits or _Restore().value(node, self._value, self._name) is not self._value:
            raise ValueError(
                f"{self._name} is a {type(self._value).__name__} that cannot hold what was saved: "
                "its shape, dtype or class has changed"
            )


def has_state_dict(value: Any) -> bool:
    """Return whether the class of an object has both methods; to ask the object may call it."""
    kind = type(value)
    return hasattr(kind, "state_dict") and hasattr(kind, "load_state_dict")


class _Capture:
    """One walk through an object, in which everything that it meets twice is stored once."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._met: list[Any] = []  # so that no id is used again
        self.stateful: list[Any] = []

    def node(self, value: Any, where: str) -> Node:
        if type(value) in _LEAVES:
            return value
        if isinstance(value, enum.Enum):
            return {"kind": "enum", "class": _findable(value, where), "name": value.name}
        if isinstance(value, _CODE) or arrays.is_dtype(value) or _is_used_up(value):
            return {"kind": "code"}
        if isinstance(value, tuple):
            return self._tuple(value, where)
        if arrays.is_scalar(value):
            return {"kind": "scalar", "value": arrays.as_tensor(value, where)}
        if isinstance(value, _LEAVES):
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
        if _is_plain_class(type(value)):
            node = {"kind": "object", "class": name_of_class(type(value))}
            return node | {"attributes": self._attributes(value, where)}
        # Such as a path or a date, which do not change; what cannot be stored is refused here.
        to_plain(value, where)
        return value

    def _container(self, value: Any, where: str) -> Node:
        node: dict[str, Any] = {"kind": "container", "class": _class_of_container(value)}
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
        return node

    def _attributes(self, value: Any, where: str) -> dict[str, Node]:
        return {name: self.node(item, f"{where}.{name}") for name, item in vars(value).items()}


class _Restore:
    """The walk in the other direction, in the same order."""

    def __init__(self) -> None:
        self._met: list[Any] = []

    def value(self, node: Node, live: Any, where: str) -> Any:
        """Return the value of a node: ``live`` itself, with its content, wherever that can be."""
        if isinstance(node, torch.Tensor):
            return self._meet(_restored_tensor(node, live))
        if type(node) is not dict:
            return node if isinstance(node, _LEAVES) else self._meet(node)
        match node["kind"]:
            case "again":
                return self._met[node["number"]]
            case "enum":
                return class_by_name(node["class"])[node["name"]]
            case "code":
                return self._existing(live, where)
            case "scalar":
                return arrays.scalar_of(node["value"])
            case "tuple":
                return self._tuple(node, live, where)
            case "array":
                return self._meet(arrays.restored(node["value"], live))
            case "generator":
                return self._meet(_restored_generator(node["value"], live))
            case "stateful":
                self._meet(self._existing(live, where)).load_state_dict(node["value"])
                return live
            case "container":
                return self._container(node, live, where)
            case "object":
                return self._object(node, live, where)
        raise ValueError(f"{where} was saved as a {node['kind']!r}, which is unknown here")

    def _meet(self, value: Any) -> Any:
        self._met.append(value)
        return value

    def _existing(self, live: Any, where: str) -> Any:
        if live is _MISSING:
            raise ValueError(f"{where} is not there, and cannot be made from what was saved")
        return live

    def _tuple(self, node: Node, live: Any, where: str) -> Any:
        there = live if isinstance(live, tuple) else ()
        items = self._values(node, list(there), where)
        return tuple(items) if node["class"] is None else class_by_name(node["class"])._make(items)

    def _container(self, node: Node, live: Any, where: str) -> Any:
        if _is_of_another_class(node, live):
            live = _new_container(node, where)
        self._meet(live)
        self._put_attributes(node, live, where)
        if isinstance(live, dict):
            there = [live.get(key, _MISSING) for key in node["keys"]]
            values = self._values(node, there, where)
            live.clear()
            for key, value in zip(node["keys"], values, strict=True):
                live[key] = value  # a Counter's update() would count
            return live
        values = self._values(node, [] if isinstance(live, set) else list(live), where)
        live.clear()
        if isinstance(live, set):
            live.update(values)
        else:
            live.extend(values)
        return live

    def _values(self, node: Node, live: list[Any], where: str) -> list[Any]:
        if "column" in node:
            return unpack(node["column"])
        there = live + [_MISSING] * (len(node["items"]) - len(live))
        pairs = enumerate(zip(node["items"], there, strict=False))
        return [self.value(item, here, f"{where}[{i}]") for i, (item, here) in pairs]

    def _object(self, node: Node, live: Any, where: str) -> Any:
        if _is_of_another_class(node, live):
            live = object.__new__(class_by_name(node["class"]))
        self._meet(live)
        self._put_attributes(node, live, where)
        return live

    def _put_attributes(self, node: Node, live: Any, where: str) -> None:
        for name, item in node.get("attributes", {}).items():
            here = vars(live).get(name, _MISSING)
            vars(live)[name] = self.value(item, here, f"{where}.{name}")


def _findable(value: Any, where: str) -> str:
    if not is_found_by_name(type(value)):
        problem = f"its class {type(value).__qualname__} is not at the top level of a module"
        raise UnstorableError(where, problem)
    return name_of_class(type(value))


def _is_used_up(value: Any) -> bool:
    """Return whether this is an iterator with nothing left, such as Gymnasium's vectors hold."""
    return isinstance(value, Iterator) and operator.length_hint(value, 1) == 0


def _class_of_container(value: Any) -> str:
    kind: Any = type(value)
    return kind.__name__ if kind in _BUILT_IN.values() else name_of_class(kind)


def _is_of_another_class(node: Node, live: Any) -> bool:
    """Return whether ``live`` is no place for a saved object; its class may have moved."""
    if type(node) is not dict or node["kind"] not in ("object", "container"):
        return False
    here = _class_of_container(live)
    return bool(here.rpartition(":")[2] != node["class"].rpartition(":")[2])


def _new_container(node: Node, where: str) -> Any:
    if node["class"] == "deque":
        return deque(maxlen=node["maxlen"])
    if node["class"] not in _BUILT_IN:
        raise ValueError(f"{where} is not there, and a {node['class']} cannot be made for it")
    return _BUILT_IN[node["class"]]()


def _restored_tensor(saved: torch.Tensor, live: Any) -> torch.Tensor:
    if isinstance(live, torch.Tensor) and (live.shape, live.dtype) == (saved.shape, saved.dtype):
        with torch.no_grad():
            return live.copy_(saved)
    return saved.clone()


def _restored_generator(saved: dict[str, Any], live: Any) -> Any:
    if not generators.is_generator(live) or generators.state_of(live)["kind"] != saved["kind"]:
        live = generators.new_generator(saved["kind"])
    generators.set_state(live, saved)
    return cast(Any, live)
