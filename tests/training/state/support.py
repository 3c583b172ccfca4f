"""A script with objects to register, and the comparison of values bit for bit."""

from typing import Any

import numpy as np
import torch
from torch import nn

from orchestrator.training.state.digests import digest
from orchestrator.training.state.registered_objects import Registry


def bits(value: Any) -> Any:
    """A form in which two values are equal only if their types and bits are."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return type(value), str(value.dtype), tuple(value.shape), digest(torch.as_tensor(value))
    if isinstance(value, dict):
        return type(value), [(key, bits(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [bits(item) for item in value]
    return type(value), repr(value)


class Ema:
    """An object of the script with state_dict() and load_state_dict()."""

    def __init__(self, value: float) -> None:
        self.value = value

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = state["value"]


class Script:
    """A model with buffers, two parameter groups and a scheduler, trained for ``seed`` steps."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        first, *_, last = self.model
        groups = [{"params": list(first.parameters())}, {"params": list(last.parameters())}]
        self.optimizer = torch.optim.Adam(groups, lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1)
        self.ema = Ema(float(seed))
        for _ in range(seed):
            self.model(torch.randn(5, 3)).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()

    def registry(self) -> Registry:
        registry = Registry()
        registry.add(vars(self))
        return registry

    def snapshot(self) -> str:
        """Return every value of every live object as text."""
        with torch._tensor_str.printoptions(threshold=10_000, precision=12):  # type: ignore[attr-defined]
            return str({name: value.state_dict() for name, value in vars(self).items()})
