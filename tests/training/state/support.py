"""Comparison of values bit for bit."""

from typing import Any

import numpy as np
import torch

from orchestrator.training.state.digests import digest


def bits(value: Any) -> Any:
    """A form in which two values are equal only if their types and bits are."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return type(value), str(value.dtype), tuple(value.shape), digest(torch.as_tensor(value))
    if isinstance(value, dict):
        return type(value), [(key, bits(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [bits(item) for item in value]
    return type(value), repr(value)
