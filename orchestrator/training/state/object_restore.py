"""Restores the registered objects from the states that a file or a slot holds."""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from orchestrator.training.state.compatibility import (
    compare,
    expectation_of,
    loads_in_its_own_way,
    lost,
    may_load_anyway,
    mismatch,
    rehearse,
)
from orchestrator.training.state.plain_values import from_plain
from orchestrator.training.state.progress import SUFFIX
from orchestrator.training.state.registered_objects import Registry, Stateful
from orchestrator.training.state.sharding import Sharding
from orchestrator.training.state.wrappers import with_names_of

# Failures of the device, not of the state; both are RuntimeErrors. torch 2.7 lacks the second.
DEVICE_ERRORS = (
    torch.OutOfMemoryError,
    getattr(torch, "AcceleratorError", torch.OutOfMemoryError),
)


class ObjectRestore:
    """Restores the registered objects from one source."""

    def __init__(
        self, objects: Mapping[str, Stateful], source: Path, sharding: Sharding | None = None
    ) -> None:
        """``objects`` are the registered ones, by name; an error names ``source``.

        ``sharding`` tells where their DTensors are, if they have some.
        """
        self._objects = objects
        self._source = source
        self._sharding = sharding

    def restore_classic(self, content: Mapping[str, Any]) -> list[str]:
        """Restore the objects that the file contains, and return the names of the others.

        Raises MismatchError as ``restore`` does.
        """
        absent = [name for name in self._objects if name + SUFFIX not in content]
        self.restore(content, optional=absent)
        return absent

    def restore(
        self,
        content: Mapping[str, Any],
        optional: Iterable[str] = (),
        *,
        borrowed: bool = False,
        classes: Mapping[str, str] = MappingProxyType({}),
        fresh: Iterable[torch.Tensor] = (),
    ) -> None:
        """Compare every state in ``content`` with its live object, then load all of them.

        Names in ``optional`` may be missing in ``content``. With ``borrowed`` its tensors belong to
        a slot or a mapped file, but for the ``fresh`` ones, so objects that would keep them get
        copies. ``classes`` are those of the saved objects, as far as they are known. Raises
        MismatchError with all differences, before any object has changed, or for the first object
        that refuses its state or drops part of it.
        """
        present = {key.removesuffix(SUFFIX) for key in content if key.endswith(SUFFIX)}
        missing = [n for n in self._objects if n not in present and n not in set(optional)]
        unused = sorted(present - self._objects.keys())
        differences = [f"{name} is registered, but not in the file" for name in missing]
        differences += [f"{name} is in the file, but not registered" for name in unused]
        states = {
            name: _with_live_names(value, from_plain(content[name + SUFFIX]))
            for name, value in self._objects.items()
            if name in present
        }
        undecided = set()
        for name, state in states.items():
            lines = _compare_or_rehearse(self._objects[name], state, classes.get(name))
            if lines is None:
                undecided.add(name)
            differences += [f"{name}: {line}" for line in lines or ()]
        if differences:
            raise mismatch(self._source, differences)
        for name, state in states.items():
            value = self._objects[name]
            if borrowed and not _copies_what_it_loads(value):
                state = copy.deepcopy(state, {id(tensor): tensor for tensor in fresh})
            self._load(name, state)
            if name in undecided:
                dropped = lost(state, value, value)
                if dropped:
                    raise mismatch(self._source, [f"{name}: {line}" for line in dropped])

    def _load(self, name: str, state: Any) -> None:
        live = self._objects[name]
        try:
            if self._sharding is not None:
                state = self._sharding.distributed(name, live, state)
            live.load_state_dict(state)
        except DEVICE_ERRORS:
            raise  # the device is full or broken; the file may be right
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            # torch writes this when copying a tensor into a module fails. The shapes have been
            # compared, so the cause is the device; torch keeps only the text of its exception.
            if "an exception occurred" in str(error):
                raise
            raise mismatch(self._source, [f"{name}: {error}"]) from error


def load_captured(registry: Registry, name: str, state: Any) -> None:
    """Load into one object the state that the registry has captured of it."""
    value = registry.objects[name]
    state = _with_live_names(value, from_plain(state))
    if registry.sharding is not None:
        state = registry.sharding.distributed(name, value, state)
    value.load_state_dict(state)


def _with_live_names(value: Stateful, state: Any) -> Any:
    return with_names_of(value, state) if isinstance(value, torch.nn.Module) else state


def _copies_what_it_loads(value: Stateful) -> bool:
    """Return whether this is a module whose ``load_state_dict`` copies every tensor.

    That holds for every module that overrides neither it nor ``set_extra_state``, and has no way of
    its own to load.
    """
    base = torch.nn.Module
    return isinstance(value, base) and not (
        loads_in_its_own_way(value)
        or any(type(part).set_extra_state is not base.set_extra_state for part in value.modules())
    )


def _compare_or_rehearse(value: Stateful, state: Any, saved_class: str | None) -> list[str] | None:
    """Return the differences; None where only loading can show whether the state fits."""
    expected = expectation_of(value)
    differences = compare(expected, state, saved_class)
    if not differences or not may_load_anyway(expected, saved_class):
        return differences
    try:
        dropped = rehearse(value, state)
    except Exception:  # it refuses the state
        return differences
    return None if dropped is None else dropped and differences + dropped
