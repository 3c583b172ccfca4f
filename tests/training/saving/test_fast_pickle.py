"""The faster pickler writes what torch.save writes by itself, byte for byte."""

import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from orchestrator.training.saving.breather import never
from orchestrator.training.saving.fast_pickle import TYPED_DTYPES, fast_pickle
from orchestrator.training.saving.image import freeze
from tests.training.saving.support import states

OTHER_DTYPES = [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64]
COMPLEX = torch.arange(6.0).to(torch.complex64)
SHARED = torch.arange(12.0)
UNUSUAL = {
    "conjugated": COMPLEX.conj(),
    "negated": COMPLEX.conj().imag,
    "shared": [SHARED, SHARED[2:5], SHARED.view(3, 4).T, SHARED],
    "parameters": [torch.nn.Parameter(torch.ones(3), requires_grad=on) for on in (True, False)],
    "trained": torch.ones(3).requires_grad_(),
    "empty": [torch.empty(0), torch.empty(3, 0), torch.zeros(())],
    "expanded": torch.ones(1).expand(4, 5),
    "sparse": torch.eye(3).to_sparse(),
    "module": torch.nn.BatchNorm1d(3).state_dict(),
    "plain": {"text": "\udcff", "set": {1, 2}, "bytes": b"x", "size": torch.Size([1, 2])},
    "kinds": [torch.float32, torch.device("cpu"), torch.strided],
}


def assert_same_bytes(state: Any) -> None:
    mine, other = io.BytesIO(), io.BytesIO()
    torch.save(state, mine, pickle_module=fast_pickle(never))
    torch.save(state, other)
    assert mine.getvalue() == other.getvalue()


@settings(max_examples=100)
@given(states())
def test_any_state_has_the_same_bytes(state: Any) -> None:
    """Nested and shared containers and tensors come out as torch.save writes them."""
    assert_same_bytes(freeze(state).tree)


@pytest.mark.parametrize("dtype", [*sorted(TYPED_DTYPES, key=str), *OTHER_DTYPES], ids=str)
def test_each_dtype_has_the_same_bytes(dtype: torch.dtype) -> None:
    """Those whose storages have a type of their own, and those that are stored as bytes."""
    assert_same_bytes({"tensor": torch.ones(3).to(dtype), "scalar": torch.tensor(1).to(dtype)})


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_value_has_the_same_bytes(name: str) -> None:
    """What is in more than the bytes of a tensor is left to torch."""
    assert_same_bytes(UNUSUAL[name])


def test_thread_may_rest_after_each_tensor() -> None:
    """However many tensors there are, none is far from a rest."""
    rests = []
    state = {"tensors": [torch.ones(2) for _ in range(50)], "plain": list(range(100))}
    torch.save(state, io.BytesIO(), pickle_module=fast_pickle(lambda: rests.append(1)))
    assert len(rests) == 50
