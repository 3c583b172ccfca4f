"""Values as the safe load accepts them."""

import argparse
import io
from collections import OrderedDict, defaultdict
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.swa_utils import SWALR

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
def test_conversion(value: Any, expected: Any) -> None:
    """What the safe load refuses comes back as the same or the plain value."""
    assert round_trip(value) == expected


def annealing_state(strategy: Literal["cos", "linear"]) -> dict[str, Any]:
    """The state of a SWALR as torch 2.7 to 2.9 give it, with its function."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = SWALR(optimizer, swa_lr=0.05, anneal_strategy=strategy)
    return {**schedule.state_dict(), "anneal_func": schedule.anneal_func}


@pytest.mark.parametrize("strategy", ["cos", "linear"])
def test_annealing_function_of_swalr_comes_back(strategy: Literal["cos", "linear"]) -> None:
    """The function in the state of a SWALR is stored by its name and comes back as itself."""
    state = annealing_state(strategy)
    assert round_trip(state) == state
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = SWALR(optimizer, swa_lr=0.05, anneal_strategy=strategy)
    schedule.load_state_dict(round_trip(state))
    assert schedule.anneal_func is state["anneal_func"]


def test_other_functions_are_refused() -> None:
    """A function that is not one of SWALR's has no form that the safe load accepts."""
    with pytest.raises(UnstorableError, match="function"):
        to_plain({"schedule": lambda step: step}, "value")


def test_array_comes_back() -> None:
    """A NumPy array comes back with its type and values."""
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
def test_plain_values_pass_untouched(value: Any) -> None:
    """A value that needs no conversion is returned as the same object, and survives the file."""
    assert to_plain(value, "value") is value
    assert round_trip(value) == value


def test_tied_tensors_and_attributes_survive() -> None:
    """Tensors that share memory still do, and a state_dict keeps its metadata."""
    weight = torch.randn(3)
    state = OrderedDict(a=weight, b=weight)
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    back = round_trip(state)
    assert back["a"].data_ptr() == back["b"].data_ptr()
    assert back._metadata == {"": {"version": 1}}


@pytest.mark.parametrize(
    "value", [print, object(), io.StringIO(), torch.nn.Linear(1, 1), np.array(["text"])]
)
def test_refusal_names_the_place(value: Any) -> None:
    """What has no safe form is refused by its path."""
    with pytest.raises(UnstorableError, match=r"state\['a'\]\[1\]"):
        to_plain({"a": [0, value]}, "state")
