"""States of every kind, and how an image in a slot is read and compared."""

import io
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import torch

from orchestrator.snapshot.slots import Snapshot

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64]
WHOLE = [torch.int64, torch.int8, torch.uint8, torch.bool]


def bytes_of(snapshot: Snapshot) -> bytes:
    with open(f"/dev/fd/{snapshot.descriptor}", "rb") as file:
        return file.read(snapshot.image_bytes)


def loaded(image: bytes) -> Any:
    return torch.load(io.BytesIO(image), weights_only=True)["state"]


def assert_same(mine: Any, other: Any) -> None:
    """Equal in type, value, layout in memory, and in what is shared."""
    assert type(mine) is type(other)
    if isinstance(other, torch.Tensor):
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
        assert (mine.stride(), mine.storage_offset()) == (other.stride(), other.storage_offset())
        assert mine.requires_grad == other.requires_grad
        assert mine.untyped_storage().tolist() == other.untyped_storage().tolist()
    elif isinstance(other, dict):
        assert list(mine) == list(other)
        assert vars(mine) == vars(other) if hasattr(other, "__dict__") else True
        for key, value in other.items():
            assert_same(mine[key], value)
    elif isinstance(other, (list, tuple)):
        assert len(mine) == len(other)
        for a, b in zip(mine, other, strict=True):
            assert_same(a, b)
    else:
        assert mine == other or (mine != mine and other != other)


def sharing(value: Any) -> list[int]:
    """Which tensors share storages, as numbers of the storages in the order of appearance."""
    storages: list[int] = []

    def visit(item: Any) -> Iterator[int]:
        if isinstance(item, torch.Tensor):
            key = item.untyped_storage()._cdata
            if key not in storages:
                storages.append(key)
            yield storages.index(key)
        elif isinstance(item, dict):
            for entry in item.values():
                yield from visit(entry)
        elif isinstance(item, (list, tuple)):
            for entry in item:
                yield from visit(entry)

    return list(visit(value))


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    numbers = torch.randint(-100, 100, shape, generator=seed)
    tensor = numbers.to(draw(st.sampled_from(FLOATS + WHOLE)))
    match draw(st.sampled_from(["plain", "turned", "strided", "parameter", "expanded", "grad"])):
        case "turned" if tensor.dim() > 1:
            return tensor.transpose(0, -1)
        case "strided" if tensor.dim():
            return tensor[::2]
        case "parameter" if tensor.is_floating_point():
            return torch.nn.Parameter(tensor)
        case "expanded":
            return tensor.unsqueeze(0).expand(3, *tensor.shape)
        case "grad" if tensor.is_floating_point():
            return tensor.requires_grad_()
    return tensor


PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(min_size=1, max_size=5),
)


@st.composite
def states(draw: st.DrawFn) -> Any:
    """A nested state in which tensors and containers may appear more than once."""
    pool = draw(st.lists(tensors(), min_size=1, max_size=4))
    pool += [tensor.detach().view(-1) for tensor in pool if tensor.is_contiguous()]
    leaves = st.one_of(PLAIN, st.sampled_from(range(len(pool))).map(lambda i: pool[i]))
    shared = draw(st.lists(leaves, max_size=3))
    return draw(
        st.recursive(
            leaves | st.just(shared),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.tuples(inner, inner)
                | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=4)
                | st.dictionaries(st.text(max_size=3), inner, max_size=3).map(OrderedDict)
            ),
            max_leaves=12,
        )
    )
