"""Points from which the script's code runs again after a resume.

A safe point inside an evaluation lies between two places that the session knows, such as the end of
an epoch's batches and the end of the epoch. A run resumed from there executes everything after the
first place once more. Its checkpoint must therefore hold the state of that place: a scheduler that
has stepped since would step twice, a random stream that has moved would move twice.
"""

from collections import OrderedDict
from typing import Any

import torch


class ReplayPoint:
    """The state at such a place: plain values copied, tensors referred to and watched."""

    def __init__(self, state: dict[str, Any], metrics: dict[str, Any]) -> None:
        self._tensors: list[torch.Tensor] = []
        self.state: dict[str, Any] = self._copy(state)
        self.metrics = dict(metrics)
        self._seen = self._look()

    def is_intact(self) -> bool:
        """Whether no tensor has been written to since, so that ``state`` can still be saved."""
        return self._seen == self._look()

    def _look(self) -> list[Any]:
        versions = [0 if t.is_inference() else t._version for t in self._tensors]
        # Writes through .data leave the version alone, and inference tensors have none: averaged
        # weights are swapped in like that for an evaluation. One pass at memory speed tells.
        return [*versions, *map(_sum, self._tensors)]

    def _copy(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            self._tensors.append(value)
            return value
        if type(value) in (dict, OrderedDict):
            copied = type(value)((key, self._copy(item)) for key, item in value.items())
            if hasattr(value, "__dict__"):
                copied.__dict__.update(value.__dict__)  # a module's state_dict carries _metadata
            return copied
        if type(value) in (list, tuple, set):
            return type(value)(self._copy(item) for item in value)
        return value


def _sum(tensor: torch.Tensor) -> str:
    if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_quantized:
        return ""
    # As text, in which NaN equals NaN.
    return str(torch.sum(tensor.detach(), dtype=torch.float32).item())
