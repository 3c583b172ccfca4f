"""Conversion of single values to a form that the safe load accepts."""

import argparse
import io
from collections import OrderedDict, defaultdict
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UnstorableError
from orchestrator.training.state.plain_values import TAG, from_plain, to_plain


class Color(StrEnum):
    RED = "red"


def round_trip(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(to_plain(value, "value"), buffer)
    buffer.seek(0)
    return from_plain(torch.load(buffer, weights_only=True))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(1.5), 1.5),
        (np.int32(3), 3),
        (Path("a/b"), Path("a/b")),
        (argparse.Namespace(lr=0.1, path=Path("x")), argparse.Namespace(lr=0.1, path=Path("x"))),
        (datetime(2026, 11, 23, 1, 2), datetime(2026, 11, 23, 1, 2)),
        (timedelta(days=1, microseconds=7), timedelta(days=1, microseconds=7)),
        (defaultdict(list, {"a": [1]}), {"a": [1]}),
        (Color.RED, "red"),
        ({"deep": [(np.float32(0.5), {1, 2})]}, {"deep": [(0.5, {1, 2})]}),
    ],
)
def test_converted_value_comes_back(value: Any, expected: Any) -> None:
    """A value that the safe load refuses comes back equal, or as the plain value it contains."""
    assert round_trip(value) == expected


def test_numpy_array_comes_back() -> None:
    """A NumPy array comes back with its dtype and values."""
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    back = round_trip({"a": array})["a"]
    assert back.dtype == array.dtype
    assert (back == array).all()


keys = st.text().filter(lambda key: key != TAG)
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.tuples(inner, inner),
    max_leaves=12,
)


@given(plain_values)
def test_plain_value_is_returned_as_the_same_object(value: Any) -> None:
    """A value that needs no conversion is returned as the same object, and survives the file."""
    assert to_plain(value, "value") is value
    assert round_trip(value) == value


def test_tied_tensors_and_attributes_are_kept() -> None:
    """Tensors that share memory still share it, and a state_dict keeps its metadata."""
    weight = torch.randn(3)
    state = OrderedDict(a=weight, b=weight)
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    back = round_trip(state)
    assert back["a"].data_ptr() == back["b"].data_ptr()
    assert back._metadata == {"": {"version": 1}}


@pytest.mark.parametrize(
    "value", [print, object(), io.StringIO(), torch.nn.Linear(1, 1), np.array(["text"])]
)
def test_unstorable_value_is_refused_with_its_path(value: Any) -> None:
    """A value that has no safe form is refused with the path to it."""
    with pytest.raises(UnstorableError, match=r"state\['a'\]\[1\]"):
        to_plain({"a": [0, value]}, "state")
