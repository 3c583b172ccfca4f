"""Long lists become columns, and lists again."""

import collections
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from orchestrator.training.state.columns import class_by_name, pack, unpack
from tests.training.state.support import bits

Pair = collections.namedtuple("Pair", ["before", "after"])


class Transition(NamedTuple):
    """What a replay memory holds."""

    state: Any
    action: int
    following: Any


ALIKE: dict[str, list[Any]] = {
    "integers": [1, -(2**62), 3],
    "floats": [0.1, float("nan"), -0.0, float("inf")],
    "booleans": [True, False],
    "NumPy numbers": [np.float32(0.1), np.float32(2)],
    "NumPy flags": [np.bool_(True), np.bool_(False)],
    "arrays": [np.arange(3, dtype=np.uint8), np.ones(3, dtype=np.uint8)],
    "arrays without dimensions": [np.array(1.5), np.array(2.5)],
    "empty arrays": [np.zeros((0, 2)), np.zeros((0, 2))],
    "tensors": [torch.arange(3.0), torch.ones(3)],
    "half tensors": [torch.ones(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)],
    "nothing here and there": [None, 1.0, None],
    "tuples": [(np.ones(2), 1, 0.5, False), (np.zeros(2), 2, 1.5, True)],
    "lists": [[1, 2], [3, 4]],
    "named tuples": [Pair(1, 2), Pair(3, 4)],
    "the last transition of an episode": [
        Transition(torch.ones(2), 1, torch.zeros(2)),
        Transition(torch.zeros(2), 0, None),
    ],
    "dicts": [{"obs": np.ones(2), "reward": 1.0}, {"obs": np.zeros(2), "reward": 2.0}],
    "ordered dicts": [collections.OrderedDict(a=1), collections.OrderedDict(a=2)],
    "nested": [((1, 2), {"a": [0.5]}), ((3, 4), {"a": [1.5]})],
}


@pytest.mark.parametrize("name", ALIKE)
def test_values_that_are_alike_come_back_bit_for_bit(name: str) -> None:
    """A column holds few tensors, and gives back values of the same types and bits."""
    column = pack(ALIKE[name])
    assert column is not None
    assert bits(unpack(column)) == bits(ALIKE[name])


UNLIKE: dict[str, list[Any]] = {
    "several types": [1, 2.0],
    "a flag among numbers": [1, True],
    "several shapes": [np.ones(2), np.ones(3)],
    "several dtypes": [torch.ones(2), torch.ones(2, dtype=torch.float64)],
    "several lengths": [(1,), (1, 2)],
    "several keys": [{"a": 1}, {"b": 1}],
    "keys in another order": [{"a": 1, "b": 2}, {"b": 2, "a": 1}],
    "large integers": [2**64, 1],
    "texts": ["a", "b"],
    "objects": [object(), object()],
    "a class of the script": [collections.Counter("a"), collections.Counter("b")],
    "parameters": [torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)],
    "sparse tensors": [torch.eye(2).to_sparse(), torch.eye(2).to_sparse()],
    "arrays of objects": [np.array([None]), np.array([None])],
    "dates": [np.datetime64("2026-01-01"), np.datetime64("2026-01-02")],
    "one bad field": [(1, "a"), (2, "b")],
    "empty tuples": [(), ()],
    "nothing": [None, None],
}


@pytest.mark.parametrize("name", UNLIKE)
def test_values_that_are_not_alike_make_no_column(name: str) -> None:
    """Nothing is converted to make values fit."""
    assert pack(UNLIKE[name]) is None


def test_values_share_no_memory_with_the_column() -> None:
    """A script that changes an entry changes no other, nor what was saved."""
    column = pack([np.ones(2), np.ones(2)])
    assert column is not None
    first, second = unpack(column)
    first[:] = 5
    assert second.tolist() == [1, 1]
    assert unpack(column)[0].tolist() == [1, 1]


@pytest.mark.parametrize("name", ["nowhere:Class", "collections:gone", "collections:abc"])
def test_class_that_is_not_there_is_named(name: str) -> None:
    """Nothing is imported for a class that the script does not have, and only classes are found."""
    with pytest.raises(ValueError, match=name.replace(":", ".")):
        class_by_name(name)
