"""Random generators that data sets, samplers, transforms and collate functions own.

They are found by looking: among the attributes of an object and of what it holds, in closures, and
among the global names that its methods use.
"""

import functools
import random
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

from orchestrator.training.state.generators import is_generator

MOST_OBJECTS = 2000
MOST_ITEMS = 64  # of a list or dict: data is no place for a generator
_LEAVES = (str, bytes, bytearray, int, float, complex, type(None), type, ModuleType, torch.Tensor)
_METHODS = ("__getitem__", "__getitems__", "__iter__", "__call__")


def find_generators(*roots: Any) -> list[Any]:
    """Return the generators of Python, NumPy and torch that these objects hold or use.

    Those of the whole process, which every session restores, are left out.
    """
    of_process = _generators_of_process()
    return [v for v in _held(roots) if is_generator(v) and id(v) not in of_process]


def doubts_about(*roots: Any) -> tuple[str, ...]:
    """Return why a resumed run may differ from an uninterrupted one because of these objects."""
    if any(isinstance(value, random.SystemRandom) for value in _held(roots)):
        return ("the data draws from random.SystemRandom, which nothing can restore",)
    return ()


class OwnGenerators:
    """The generators of one object, looked for again when its attributes change."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._looked_at: list[int] | None = None
        self._found: list[Any] = []

    def find(self) -> list[Any]:
        """Return them; a data set may make its own in the worker process."""
        attributes = [id(value) for value in getattr(self._owner, "__dict__", {}).values()]
        if attributes != self._looked_at:
            self._looked_at = attributes
            self._found = find_generators(self._owner)
        return self._found

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was found: a worker looks for itself."""
        return {"_owner": self._owner, "_looked_at": None, "_found": []}


def _generators_of_process() -> set[int]:
    numpy = sys.modules.get("numpy")
    of_numpy = [numpy.random.mtrand._rand] if numpy else []
    generators = [torch.default_generator, random._inst, *of_numpy]
    return set(map(id, generators))


def _held(roots: Iterable[Any]) -> Iterator[Any]:
    """Yield the objects and what they hold or use, each once."""
    seen: dict[int, Any] = {}
    waiting = deque(roots)
    while waiting and len(seen) < MOST_OBJECTS:
        value = waiting.popleft()
        if id(value) in seen or isinstance(value, _LEAVES):
            continue
        seen[id(value)] = value
        yield value
        if not is_generator(value):
            waiting.extend(_held_by(value))


def _held_by(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from _first(value.values())
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from _first(value)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, BuiltinMethodType):
        yield value.__self__
    elif isinstance(value, FunctionType):
        yield from _held_by_function(value)
    else:
        yield from _first(getattr(value, "__dict__", {}).values())
        if type(value).__module__.partition(".")[0] not in ("torch", "builtins"):
            yield from (getattr(type(value), name, None) for name in _METHODS)


def _held_by_function(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from function.__defaults__ or ()
    for name in function.__code__.co_names:
        used = function.__globals__.get(name)
        if is_generator(used) or isinstance(used, random.SystemRandom):
            yield used


def _first(items: Iterable[Any]) -> list[Any]:
    first = []
    try:
        for item in items:
            first.append(item)
            if len(first) == MOST_ITEMS:
                break
    except Exception:  # a container of the script that does not like to be looked at
        return first
    return first
