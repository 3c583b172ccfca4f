"""Digests of batches, which read a small part of each and wait for no device."""

import sys
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch

from orchestrator.training.state.digests import Hasher
from orchestrator.training.state.tensor_kinds import has_its_storage

MOST_ITEMS = 64  # of each list or dict


class BatchHasher(Hasher):
    """A digest of batches: tensors, arrays, text and numbers, and containers of these.

    Of a tensor on a device only the shape counts, and of any other object only the class.
    """

    def add(self, value: Any) -> None:
        """Add a batch or a part of it."""
        if isinstance(value, torch.Tensor):
            if value.device.type == "cpu":
                super().add(value)
            else:
                self._add_text(f"{value.dtype}{tuple(value.shape)}")
        elif isinstance(value, Mapping):
            super().add(dict(islice(value.items(), MOST_ITEMS)))
        elif isinstance(value, (list, tuple)):
            self._add_text(f"list{len(value)}")
            for item in value[:MOST_ITEMS]:
                self.add(item)
        elif isinstance(value, str):
            self._add_text(f"str{len(value)}{value[: self._sample_bytes]}")
        elif isinstance(value, bytes):
            self.update(value[: self._sample_bytes])
        elif (numpy := sys.modules.get("numpy")) and isinstance(value, numpy.ndarray):
            self._add_array(value)
        else:
            super().add(value)

    def _add_bytes(self, tensor: torch.Tensor) -> None:
        if not has_its_storage(tensor):
            return
        if tensor.is_contiguous():
            super()._add_bytes(tensor)
        else:
            # The whole tensor would have to be copied for its elements to be in order.
            for index in (0, -1):
                self._add_bytes_of_view(_end_of(tensor, index, self._sample_bytes))

    def _add_array(self, array: Any) -> None:
        self._add_text(f"{array.dtype}{array.shape}")
        if array.dtype.hasobject:
            for item in array.flat[:MOST_ITEMS]:
                self.add(item)
            return
        count = max(1, self._sample_bytes // max(1, array.itemsize))
        self.update(array.flat[:count].tobytes())
        self.update(array.flat[-count:].tobytes())


def _end_of(tensor: torch.Tensor, index: int, size: int) -> torch.Tensor:
    """Return a part of at most ``size`` bytes at the beginning (0) or the end (-1)."""
    count = size // tensor.element_size()
    while tensor.numel() > count and tensor.dim() > 1:
        tensor = tensor[index]
    return tensor[:count] if index == 0 else tensor[-count:]
