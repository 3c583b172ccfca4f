"""Points from which the script's code runs again after a resume.

A safe point inside an evaluation lies between two places that the session knows, such as the end of
an epoch's batches and the end of the epoch. A run resumed from there executes everything after the
first place once more. Its checkpoint must therefore hold the state of that place: a scheduler that
has stepped since would step twice, a random stream that has moved would move twice.

The other way round, a run that was cut among an epoch's batches repeats what lies before them
on its way back, and has to undo it once it is there.
"""

from collections import OrderedDict
from typing import Any

import torch

from orchestrator.training.state.plain_values import to_plain
from orchestrator.training.state.registry import Registry

_IMMUTABLE = (bool, int, float, complex, str, bytes, type(None))


class ReplayPoint:
    """The state at such a place: plain values copied, tensors referred to and watched."""

    def __init__(self, state: dict[str, Any]) -> None:
        self._tensors: list[torch.Tensor] = []
        self.state: dict[str, Any] = _copied(state, self._tensors)
        self._seen = self._look()

    def is_intact(self) -> bool:
        """Whether no tensor has been written to since, so that ``state`` can still be saved."""
        return self._seen == self._look()

    def undo(self, registry: Registry, state: dict[str, Any]) -> list[str]:
        """Put back what has changed since; returns what could not be, for the session's exactness.

        New entries of ``state`` stay: a script that was changed meanwhile relies on them. So do
        containers, since the script may hold them under names of its own.
        """
        problems = []
        if not self.is_intact():
            problems.append("tensors were changed on the way to the interrupted batch")
        for key, value in registry.capture().items():
            if not same(self.state[key], value):
                registry.load(key, _copied(self.state[key], []))
        now, before = to_plain(state, "session.state"), self.state["state"]
        for key in [key for key in now | before if not same(before.get(key), now.get(key))]:
            if key in before and type(before[key]) in _IMMUTABLE:
                state[key] = before[key]
            else:
                problems.append(
                    f"session.state[{key!r}] was changed on the way to the interrupted batch"
                )
        return problems

    def _look(self) -> list[Any]:
        versions = [0 if t.is_inference() else t._version for t in self._tensors]
        # Writes through .data leave the version alone, and inference tensors have none: averaged
        # weights are swapped in like that for an evaluation. One pass at memory speed tells.
        return [*versions, *map(_sum, self._tensors)]


def _copied(value: Any, tensors: list[torch.Tensor]) -> Any:
    """The value with its containers copied; its tensors are the same, and added to ``tensors``."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return value
    if type(value) in (dict, OrderedDict):
        copied = type(value)((key, _copied(item, tensors)) for key, item in value.items())
        if hasattr(value, "__dict__"):
            copied.__dict__.update(value.__dict__)  # a module's state_dict carries _metadata
        return copied
    if type(value) in (list, tuple, set):
        return type(value)(_copied(item, tensors) for item in value)
    return value


def same(mine: Any, other: Any) -> bool:
    """Whether two states hold the same values, tensors in the same places or equal."""
    if type(mine) is not type(other):
        return False
    if isinstance(mine, torch.Tensor):
        return _same_tensor(mine, other)
    if isinstance(mine, dict):
        return mine.keys() == other.keys() and all(same(mine[key], other[key]) for key in mine)
    if isinstance(mine, (list, tuple)):
        return len(mine) == len(other) and all(map(same, mine, other))
    return bool(mine == other or (mine != mine and other != other))


def _same_tensor(mine: torch.Tensor, other: torch.Tensor) -> bool:
    if mine.shape != other.shape or mine.dtype != other.dtype or mine.device != other.device:
        return False
    if mine.layout is not torch.strided or mine.data_ptr() == other.data_ptr():
        return True
    return torch.equal(mine, other)


def _sum(tensor: torch.Tensor) -> str:
    if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_quantized:
        return ""
    # As text, in which NaN equals NaN.
    return str(torch.sum(tensor.detach(), dtype=torch.float32).item())
