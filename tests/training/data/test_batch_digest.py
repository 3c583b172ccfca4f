"""Digests of batches: what counts, and what is left out."""

from collections import UserDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.training.data.batch_digest import MOST_ITEMS, BatchHasher

Pair = namedtuple("Pair", "inputs targets")


def digest_of(batch: Any) -> str:
    hasher = BatchHasher(sample_bytes=1024)
    hasher.add(batch)
    return hasher.hexdigest()


def images(value: float = 0.0) -> torch.Tensor:
    """A batch whose elements are not in the order of their places in memory."""
    batch = torch.zeros(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    batch[-1, -1, -1, -1] = value
    return batch


def nan() -> torch.Tensor:
    return torch.tensor([float("nan")])


DIFFERENT: dict[str, tuple[Any, Any]] = {
    "a value": (torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])),
    "a shape": (torch.zeros(6), torch.zeros(2, 3)),
    "a type": (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
    "the last of many": (torch.zeros(10_000), torch.tensor([0.0] * 9_999 + [1.0])),
    "a tensor in another order": (images(), images(1.0)),
    "an array": (np.zeros(3), np.array([0.0, 1.0, 0.0])),
    "the last of an array": (np.zeros(10_000), np.array([0.0] * 9_999 + [1.0])),
    "an array of text": (np.array(["a", "b"]), np.array(["a", "c"])),
    "an array of objects": (np.array([1, "b"], object), np.array([1, "c"], object)),
    "text": (["one", "two"], ["one", "three"]),
    "bytes": (b"one", b"two"),
    "a number": ({"x": 1}, {"x": 2}),
    "a key": ({"x": 1}, {"y": 1}),
    "a mapping": (UserDict(x=torch.zeros(1)), UserDict(x=torch.ones(1))),
    "a named tuple": (Pair(torch.zeros(1), 1), Pair(torch.ones(1), 1)),
    "a sparse tensor": (torch.eye(2).to_sparse(), torch.zeros(2, 2).to_sparse()),
    "a length": ([0] * 100, [0] * 101),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_different_batches_have_different_digests(what: str) -> None:
    """What a loop would compute on counts, at both ends of what is large."""
    one, other = DIFFERENT[what]
    assert digest_of(one) != digest_of(other)


def test_equal_batches_have_equal_digests() -> None:
    """The same values elsewhere in memory count the same, NaN and objects without text included."""

    def make() -> Any:
        return [nan(), images(2.0), np.arange(5), {"a": "b", "c": object()}, [torch.ones(3)] * 99]

    assert digest_of(make()) == digest_of(make())


def test_only_first_items_are_looked_at() -> None:
    """A list of a million items costs no more than its first ones."""
    one = [torch.zeros(1)] * MOST_ITEMS + [torch.zeros(1)]
    assert digest_of(one) == digest_of([*one[:-1], torch.ones(1)])


@pytest.mark.parametrize("device", ["meta"])
def test_tensor_on_a_device_counts_by_its_shape(device: str) -> None:
    """Its values would have to be waited for."""
    assert digest_of(torch.zeros(2, device=device)) == digest_of(torch.ones(2, device=device))
    assert digest_of(torch.zeros(2, device=device)) != digest_of(torch.zeros(3, device=device))


def test_tensor_without_memory_is_not_read() -> None:
    """A storage that was freed would end the process."""
    freed = torch.zeros(1000)
    freed.untyped_storage().resize_(0)
    digest_of(freed)
