"""Nested states come back from a file with every supported type, at any depth."""

import argparse
import io
import math
import os
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum, IntEnum, IntFlag, StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import UnstorableError
from orchestrator.training.state.plain_values import TAG, from_plain, to_plain


class Phase(StrEnum):
    WARM_UP = "warm-up"


class Level(IntEnum):
    HIGH = 3


class Flags(IntFlag):
    A = 1
    B = 2


class Rate(float, Enum):
    SLOW = 0.5


class Plain(Enum):
    ONE = 1


class Custom:
    pass


class Subclass(torch.Tensor):
    pass


DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.complex128,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
]
ARRAY_DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]
SCALARS = [
    np.float64(0.1),
    np.float32(0.5),
    np.float16(2.5),
    np.float64("nan"),
    np.int8(-3),
    np.uint64(2**64 - 1),
    np.bool_(True),
    np.complex64(1 + 2j),
    np.str_("text"),
    np.bytes_(b"bytes"),
]


def round_trip(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(to_plain(value, "state"), buffer)
    buffer.seek(0)
    return from_plain(torch.load(buffer, weights_only=True))


def expected(value: Any) -> Any:
    """Return ``value`` itself, or the plain value that a subclass of a plain type contains."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.generic):
        return value.item()
    return value


def same(back: Any, value: Any) -> bool:
    """Return whether a value came back with its type, bit for bit."""
    value = expected(value)
    if isinstance(value, torch.Tensor):
        same_kind = type(back) is type(value) and back.dtype == value.dtype
        same_flags = back.shape == value.shape and back.requires_grad == value.requires_grad
        return same_kind and same_flags and _bytes(back) == _bytes(value)
    if isinstance(value, np.ndarray):
        same_kind = isinstance(back, np.ndarray) and back.dtype == value.dtype
        return same_kind and back.shape == value.shape and back.tobytes() == value.tobytes()
    if isinstance(value, argparse.Namespace):
        return isinstance(back, argparse.Namespace) and same(vars(back), vars(value))
    if isinstance(value, PurePosixPath):
        return isinstance(back, Path) and back == value
    if isinstance(value, dict):
        kind = type(back) is type(value) or type(value) is defaultdict
        return kind and list(back) == list(value) and all(same(back[k], value[k]) for k in value)
    if type(value) in (list, tuple):
        pairs = len(back) == len(value) and zip(back, value, strict=True)
        return type(back) is type(value) and pairs and all(same(a, b) for a, b in pairs or [])
    return type(back) is type(value) and (back == value or repr(back) == repr(value))


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().view(-1).view(torch.uint8).tolist())


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    values = torch.arange(math.prod(shape)).reshape(shape).remainder(2)
    tensor = values.to(dtype)
    if tensor.dim() > 1 and draw(st.booleans()):
        tensor = tensor.transpose(0, 1)
    if dtype.is_floating_point and draw(st.booleans()):
        return torch.nn.Parameter(tensor, requires_grad=draw(st.booleans()))
    return tensor


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    values = np.arange(math.prod(shape)).reshape(shape)
    array = values.astype(draw(st.sampled_from(ARRAY_DTYPES)))
    return array[::-1] if array.ndim and draw(st.booleans()) else array


hashable = st.booleans() | st.integers() | st.text(max_size=4) | st.binary(min_size=1, max_size=4)
dates = st.datetimes(
    timezones=st.none() | st.just(UTC) | st.just(timezone(timedelta(hours=-3, minutes=30)))
)
leaves = st.one_of(
    hashable,
    st.none(),
    st.floats(),
    st.complex_numbers(),
    tensors(),
    arrays(),
    dates,
    st.timedeltas(),
    st.sets(hashable, max_size=3),
    st.sampled_from(SCALARS),
    st.sampled_from([Phase.WARM_UP, Level.HIGH, Flags.A | Flags.B, Rate.SLOW]),
    st.sampled_from([Path("a/b"), Path("/"), PurePosixPath("c")]),
    st.sampled_from([torch.float16, torch.device("cpu"), torch.Size([2, 0])]),
)
keys = hashable | st.none() | st.tuples(st.integers(), st.text(max_size=2))


def nest(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    dicts = st.dictionaries(keys, inner, max_size=3)
    return st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        dicts,
        dicts.map(OrderedDict),
        dicts.map(lambda content: defaultdict(list, content)),
        st.dictionaries(st.sampled_from(["lr", "path", "n"]), inner).map(
            lambda content: argparse.Namespace(**content)
        ),
    )


@settings(max_examples=150)
@given(st.recursive(leaves, nest, max_leaves=8))
def test_nested_state_comes_back(value: Any) -> None:
    """A nested state of supported types comes back from the file bit for bit."""
    assert same(round_trip(value), value)


@settings(max_examples=50)
@given(st.recursive(leaves, nest, max_leaves=8))
def test_conversion_does_not_change_the_live_state(value: Any) -> None:
    """Conversion makes new containers and never changes those of the script."""
    before = repr(value)
    to_plain(value, "state")
    assert repr(value) == before


def test_value_that_needs_no_conversion_stays_the_same_object() -> None:
    """Values next to a converted one are not copied, so tied tensors stay tied."""
    weight, inner = torch.randn(4), OrderedDict(a=[1, (2, {3})])
    state = {"path": Path("x"), "weight": weight, "tied": weight, "inner": inner}
    plain = to_plain(state, "state")
    assert plain["weight"] is plain["tied"] is weight
    assert plain["inner"] is inner
    loaded = {"path": plain["path"], "inner": inner}
    assert from_plain(loaded)["inner"] is inner


def test_views_share_their_storage_after_loading() -> None:
    """Tied and overlapping tensors share their memory after loading as before."""
    base = torch.arange(6.0)
    back = round_trip({"path": Path("x"), "base": base, "tail": base[4:], "tied": base})
    back["base"][5] = 77
    assert back["tail"][1] == 77
    assert back["tied"][5] == 77


def test_tied_module_stays_tied() -> None:
    """Layers that share a weight still share it after loading."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    back = round_trip({"model": model.state_dict(), "path": Path("x")})["model"]
    assert back["0.weight"].data_ptr() == back["1.weight"].data_ptr()


def test_attributes_are_kept_next_to_a_converted_value() -> None:
    """A state_dict keeps its layer versions when one of its entries is converted."""
    state = OrderedDict(weight=torch.ones(1), extra=np.float64(1.0), where=Path("x"))
    state._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]
    assert round_trip(state)._metadata == {"": {"version": 2}}


def test_sets_of_converted_values_come_back() -> None:
    """A set of values that need conversion comes back equal, or is refused by name."""
    value = {Path("a"), datetime(2026, 1, 2), timedelta(days=1)}
    try:
        back = round_trip({"seen": value})
    except UnstorableError as error:
        assert error.where.startswith("state['seen']")
    else:
        assert back == {"seen": value}


def test_default_dict_keeps_its_default() -> None:
    """A script can keep counting in a defaultdict after a resume, or is refused by name."""
    try:
        back = round_trip({"count": defaultdict(int, {"a": 1})})
    except UnstorableError as error:
        assert error.where == "state['count']"
    else:
        back["count"]["b"] += 1
        assert back["count"] == {"a": 1, "b": 1}


PATHS: dict[str, Callable[[Any], Any]] = {
    "state": lambda bad: bad,
    "state['a']": lambda bad: {"a": bad},
    "state[3]": lambda bad: {3: bad},
    "state['a'][1]": lambda bad: {"ok": 1, "a": [0, bad]},
    "state['a'][1]['b']": lambda bad: OrderedDict(a=(0, {"b": bad})),
    "state['args']['hook']": lambda bad: {"args": argparse.Namespace(lr=1, hook=bad)},
    "state['d']['x']": lambda bad: {"d": defaultdict(list, x=bad)},
}
MASKED = np.ma.array([1, 2], mask=[False, True])  # type: ignore[no-untyped-call]
UNSTORABLE: dict[str, Any] = {
    "lambda": lambda: 0,
    "object": Custom(),
    "class": Custom,
    "open-file": open(os.devnull),  # noqa: SIM115
    "module": torch.nn.Linear(1, 1),
    "generator": np.random.default_rng(0),
    "enum": Plain.ONE,
    "tensor-subclass": torch.ones(2).as_subclass(Subclass),
    "text-array": np.array(["text"]),
    "object-array": np.array([Custom()]),
    "structured-array": np.zeros(2, dtype=[("a", "i4")]),
}
# The safe load refuses or changes each of these unless it is converted.
SUBTLE: dict[str, Any] = {
    "long-double": np.longdouble(1),
    "nanoseconds": np.datetime64("2026-01-02", "ns"),
    "foreign-byte-order": np.arange(3, dtype=np.dtype("i4").newbyteorder()),
    "masked-array": MASKED,
    "path-in-a-key": {(Path("a"), 1): 2},
    "reserved-tag": {TAG: "x"},
    "empty-bytes": b"",
    "empty-bytes-in-a-key": {b"": 1},
    "integer-of-more-than-2040-bits": 1 << 2100,
}


@pytest.mark.parametrize("where", PATHS)
@pytest.mark.parametrize("kind", ["lambda", "tensor-subclass"])
def test_unstorable_value_is_named_by_its_exact_path(kind: str, where: str) -> None:
    """The error has the path to the value, through every kind of container."""
    with pytest.raises(UnstorableError) as refused:
        to_plain(PATHS[where](UNSTORABLE[kind]), "state")
    assert refused.value.where == where
    assert str(refused.value).startswith(f"cannot store {where} in a checkpoint: ")


@pytest.mark.parametrize("kind", UNSTORABLE)
def test_value_without_a_safe_form_is_refused(kind: str) -> None:
    """A value that the safe load could not read is refused when it is saved."""
    with pytest.raises(UnstorableError) as refused:
        to_plain({"a": UNSTORABLE[kind]}, "state")
    assert refused.value.where == "state['a']"


@pytest.mark.parametrize("kind", SUBTLE)
def test_subtle_value_comes_back_unchanged_or_is_refused(kind: str) -> None:
    """A value that looks storable comes back unchanged or is refused by name."""
    value = {"a": SUBTLE[kind]}
    try:
        back = round_trip(value)
    except UnstorableError as error:
        assert error.where.startswith("state['a']")
        return
    assert type(back["a"]) is type(value["a"])
    assert np.array_equal(back["a"], value["a"])


def test_unstorable_key_is_refused_by_name() -> None:
    """A key that is not a plain value is refused, and the error has it."""
    with pytest.raises(UnstorableError, match=r"state\['a'\]\[.*Custom.*\]"):
        to_plain({"a": {Custom(): 1}}, "state")


def test_tensor_with_an_attribute_can_be_loaded() -> None:
    """An object set as an attribute of a tensor is refused or left out, so the file loads."""
    weight = torch.ones(2)
    weight.tag = Path("x")  # type: ignore[attr-defined]
    try:
        back = round_trip({"weight": weight})
    except UnstorableError as error:
        assert error.where.startswith("state['weight']")
    else:
        assert torch.equal(back["weight"], weight)
