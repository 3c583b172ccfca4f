"""Puts what kept_capture.py has captured back into the objects of a resumed script."""

import enum
from collections import deque
from typing import Any, cast

import torch

from orchestrator.training.state import arrays, generators
from orchestrator.training.state.columns import class_by_name, named_tuple_by_name, unpack
from orchestrator.training.state.kept_capture import (
    BUILT_IN,
    LEAVES,
    Node,
    class_of_container,
    why_not_made,
)

_MISSING = object()


class Restore:
    """The walk in the other direction, in the same order."""

    def __init__(self) -> None:
        self._met: list[Any] = []

    def value(self, node: Node, live: Any, where: str) -> Any:
        """Return the value of a node: ``live`` itself, with its content, wherever that can be.

        Raises:
            ValueError: There is nothing that can hold the content, or its class is gone.
        """
        if isinstance(node, torch.Tensor):
            return self._meet(_restored_tensor(node, live))
        if type(node) is not dict:
            return node if isinstance(node, LEAVES) else self._meet(node)
        match node["kind"]:
            case "again":
                return self._met[node["number"]]
            case "enum":
                return _enum(node["class"])[node["name"]]
            case "flag":
                return _enum(node["class"])(node["value"])
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
        return (
            tuple(items)
            if node["class"] is None
            else named_tuple_by_name(node["class"])._make(items)
        )

    def _container(self, node: Node, live: Any, where: str) -> Any:
        if is_of_another_class(node, live):
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
        if is_of_another_class(node, live):
            live = _new_object(class_by_name(node["class"]), where)
        self._meet(live)
        self._put_attributes(node, live, where)
        return live

    def _put_attributes(self, node: Node, live: Any, where: str) -> None:
        for name, item in node.get("attributes", {}).items():
            here = vars(live).get(name, _MISSING)
            vars(live)[name] = self.value(item, here, f"{where}.{name}")


def is_of_another_class(node: Node, live: Any) -> bool:
    """Return whether ``live`` is no place for a saved object; its class may have moved."""
    if type(node) is not dict or node["kind"] not in ("object", "container"):
        return False
    here = class_of_container(live)
    return bool(here.rpartition(":")[2] != node["class"].rpartition(":")[2])


def _enum(name: str) -> type[enum.Enum]:
    kind = class_by_name(name)
    if not issubclass(kind, enum.Enum):
        raise ValueError(f"{name.replace(':', '.')} is no enum")
    return cast(type[enum.Enum], kind)


def _new_object(kind: type, where: str) -> Any:
    if (problem := why_not_made(kind)) is not None:
        raise ValueError(f"{where} is not there, and a {kind.__qualname__} {problem}")
    return object.__new__(kind)


def _new_container(node: Node, where: str) -> Any:
    if node["class"] == "deque":
        return deque(maxlen=node["maxlen"])
    if node["class"] not in BUILT_IN:
        raise ValueError(f"{where} is not there, and a {node['class']} cannot be made for it")
    return BUILT_IN[node["class"]]()


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
