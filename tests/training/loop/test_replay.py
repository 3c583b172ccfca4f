"""A replay point notices every change of the memory that it refers to."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.training.loop.replay import ReplayPoint

LARGE = 1_000_000


def array() -> tuple[torch.Tensor, Any]:
    memory = np.full(LARGE, 1e4, dtype=np.float32)
    return torch.from_numpy(memory), memory


def bytes_of_images() -> tuple[torch.Tensor, Any]:
    memory = np.full(LARGE, 255, dtype=np.uint8)
    return torch.from_numpy(memory), memory


def unsigned_numbers() -> tuple[torch.Tensor, Any]:
    memory = np.full(LARGE, 255, dtype=np.uint16)
    return torch.from_numpy(memory), memory


def tensor_written_through_data() -> tuple[torch.Tensor, Any]:
    tensor = torch.full((LARGE,), 1e4)
    return tensor, tensor.data


def complex_numbers() -> tuple[torch.Tensor, Any]:
    tensor = torch.ones(LARGE, dtype=torch.complex64)
    return tensor, tensor.data


@pytest.mark.parametrize(
    "make",
    [
        array,
        bytes_of_images,
        unsigned_numbers,
        tensor_written_through_data,
        complex_numbers,
    ],
)
def test_one_changed_element_is_noticed(make: Callable[[], tuple[torch.Tensor, Any]]) -> None:
    """One entry of a large buffer, which no sum in single precision shows."""
    tensor, memory = make()
    point = ReplayPoint({"buffer": tensor})
    assert point.is_intact()
    memory[LARGE // 2] -= 1
    assert not point.is_intact()
    memory[LARGE // 2] += 1
    assert point.is_intact()
