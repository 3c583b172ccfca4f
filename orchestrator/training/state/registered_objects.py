"""The objects registered with a session, and the capture of their states into a dict.

``object_restore`` brings such states back.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch

from orchestrator.errors import ConfigError, UnstorableError
from orchestrator.training.state.accelerate import is_optimizer, unprepared
from orchestrator.training.state.compatibility import class_name
from orchestrator.training.state.composite import Composite
from orchestrator.training.state.dtensors import local_of
from orchestrator.training.state.generators import is_generator
from orchestrator.training.state.kept import Kept
from orchestrator.training.state.kept_capture import has_state_dict
from orchestrator.training.state.layout_watch import LayoutWatch
from orchestrator.training.state.plain_capture import PlainCapture
from orchestrator.training.state.progress import SUFFIX
from orchestrator.training.state.sharding import Sharding
from orchestrator.training.state.tensor_kinds import all_finite, is_plain, is_uninitialized
from orchestrator.training.state.wrappers import (
    regroups_gradients,
    unwrapped,
    with_plain_names,
)


@runtime_checkable
class Stateful(Protocol):
    """An object that can be registered with a session."""

    def state_dict(self) -> Any:
        """Return the state as tensors and plain values."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Load what ``state_dict`` returned."""


class Registry:
    """The registered objects by name, in the order of their registration."""

    def __init__(self) -> None:
        self.generators: dict[str, Any] = {}
        """The script's random generators, whose states are stored with the other streams."""
        self.plain = PlainCapture()
        """How states become plain values."""
        self._objects: dict[str, Stateful] = {}
        self.regroups_gradients = False
        """Whether DDP groups the gradients of a module anew after the first step of a process."""
        self._prepared: list[Any] = []
        self.sharding: Sharding | None = None
        """Which tensors are in pieces on several ranks; None where none are DTensors."""

    @property
    def objects(self) -> Mapping[str, Stateful]:
        """The registered objects by name."""
        return MappingProxyType(self._objects)

    def add(self, objects: Mapping[str, Any]) -> None:
        """Register objects by name; random generators go to ``generators``.

        Raises ConfigError for a name in use and for an object that has no state_dict().
        """
        for name, value in objects.items():
            if name in self._objects or name in self.generators:
                raise ConfigError(f"cannot register {name}: that name is taken")
            if is_generator(value):
                self.generators[name] = value
                continue
            if not isinstance(value, Stateful):
                raise ConfigError(
                    f"cannot register {name}: a {type(value).__name__} has no state_dict() and "
                    f"load_state_dict(); write session.keep({name}=...) for a replay buffer, an "
                    "environment or an array, and keep plain values in session.state"
                )
            if is_optimizer(value):
                self._prepared.append(value)
            self.regroups_gradients |= regroups_gradients(value)
            self._objects[name] = unwrapped(value)

    def keep(self, objects: Mapping[str, Any]) -> None:
        """Register objects by name that need no ``state_dict()``.

        Raises ConfigError for a name in use and for an object that cannot be stored.
        """
        for name, value in objects.items():
            has_state = has_state_dict(value) or is_generator(value)
            self.add({name: value if has_state else Kept(name, value)})

    def add_scalers(self) -> None:
        """Register the gradient scalers of prepared optimizers that the script has not registered.

        Their name is ``scaler``. Raises ConfigError if that name is in use.
        """
        for optimizer in self._prepared:
            scaler = optimizer.scaler
            if scaler is not None and all(scaler is not o for o in self._objects.values()):
                self.add({"scaler": scaler})

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimizers by name, those in a Composite with a number."""
        found = {}
        for name, value in self._objects.items():
            parts = value.parts() if isinstance(value, Composite) else ()
            for label, part in ((name, value), *((f"{name} {i}", p) for i, p in enumerate(parts))):
                if isinstance(part, torch.optim.Optimizer):
                    found[label] = part
        return found

    def schedulers(self) -> list[torch.optim.lr_scheduler.LRScheduler]:
        """Return the learning rate schedulers."""
        objects = map(unprepared, self._objects.values())
        return [o for o in objects if isinstance(o, torch.optim.lr_scheduler.LRScheduler)]

    def find_shards(self) -> None:
        """Find out which of the objects' tensors are DTensors, before anything is restored.

        Raises ConfigError where it cannot be told what each rank holds of one.
        """
        self.sharding = Sharding.of(self._objects)
        if self.sharding is not None:
            for name, value in self._objects.items():
                self.sharding.learn(name, _state_of(value, name))

    @property
    def is_prepared(self) -> bool:
        """Whether accelerate has prepared what is registered."""
        return bool(self._prepared)

    @property
    def accumulates(self) -> bool:
        """Whether gradients are being accumulated, which no checkpoint contains."""
        return any(not optimizer.gradient_state.sync_gradients for optimizer in self._prepared)

    def capture(self) -> dict[str, Any]:
        """Return each object's state under ``<name>_state_dict``.

        Raises UnstorableError, and until the first save what a ``state_dict()`` raises.
        """
        return {
            name + SUFFIX: self.plain.convert(name + SUFFIX, partial(self._state, value, name))
            for name, value in self._objects.items()
        }

    def _state(self, value: Stateful, name: str) -> Any:
        state = _state_of(value, name)
        return state if self.sharding is None else self.sharding.localize(name, state)

    def layout_watch(self) -> LayoutWatch:
        """Return a watch that knows what the objects can load now."""
        return LayoutWatch(self._objects)

    def classes(self) -> dict[str, str]:
        """Return the full name of each object's class, by the name of the object."""
        return {name: class_name(value) for name, value in self._objects.items()}

    def parameters(self) -> list[torch.Tensor]:
        """Return the floating point and complex parameters of every registered module.

        Buffers are left out: an attention mask contains infinities on purpose.
        """
        modules = [part for part in self.parts() if isinstance(part, torch.nn.Module)]
        return [parameter for module in modules for parameter in parameters_of(module)]

    def storages_of_optimizers(self) -> frozenset[int]:
        """Return the ``_cdata`` of each storage that changes only in an optimizer's step."""
        tensors: list[torch.Tensor] = []
        for value in self.parts():
            if isinstance(value, torch.optim.Optimizer):
                tensors += [p for group in value.param_groups for p in group["params"]]
                for state in value.state.values():
                    tensors += [entry for entry in state.values() if torch.is_tensor(entry)]
        locals_ = map(local_of, tensors)
        return frozenset(t.untyped_storage()._cdata for t in locals_ if is_plain(t))

    def parts(self) -> Iterator[Any]:
        """Yield the registered objects, and the parts of each Composite."""
        for value in self._objects.values():
            yield value
            if isinstance(value, Composite):
                yield from value.parts()

    def is_finite(self) -> bool:
        """Return whether every parameter of every registered module is finite."""
        return all(map(all_finite, self.parameters()))


def _state_of(value: Stateful, name: str) -> Any:
    state = value.state_dict()
    if not isinstance(value, torch.nn.Module):
        return state
    for key, entry in state.items():
        if isinstance(entry, torch.Tensor) and entry.is_nested:
            where = f"{name}{SUFFIX}[{key!r}]"
            raise UnstorableError(where, "torch's load_state_dict() refuses nested tensors")
    return with_plain_names(state)


def parameters_of(module: torch.nn.Module) -> list[torch.Tensor]:
    """Return a module's floating point and complex parameters, detached."""
    return [
        local_of(parameter).detach()
        for parameter in module.parameters()
        if not is_uninitialized(parameter)
        and (parameter.is_floating_point() or parameter.is_complex())
    ]
