"""The random number streams: capture, restore, and scopes with their own seed."""

import io
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.training.state import rng

STREAMS = ("python", "torch", "numpy")


@pytest.fixture(autouse=True)
def _streams_start_mid_sequence() -> Iterator[None]:
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()
    random.seed(11)
    torch.manual_seed(12)
    np.random.seed(13)
    # After an odd number of normal draws, the state of a stream has a second one cached.
    random.gauss()
    np.random.randn()
    yield
    random.setstate(before[0])
    torch.set_rng_state(before[1])
    np.random.set_state(before[2])


def draws() -> dict[str, Any]:
    return {
        "python": [random.random(), random.gauss(), random.getrandbits(70)],
        "torch": [*torch.randn(3).tolist(), *torch.randperm(9).tolist()],
        "numpy": [np.random.randn(), *np.random.permutation(9).tolist()],
    }


def saved_and_loaded(streams: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(streams, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def test_capture_does_not_change_the_streams() -> None:
    """A capture does not change what is drawn after it."""
    streams = rng.capture()
    after_capture = draws()
    assert rng.restore(streams) == []
    assert after_capture == draws()


def test_restored_streams_repeat_their_draws() -> None:
    """Each stream repeats its draws after a save and a load, cached normal values included."""
    streams = saved_and_loaded(rng.capture())
    first = draws()
    assert draws() != first
    assert rng.restore(streams) == []
    assert draws() == first


def test_scope_does_not_change_the_streams_outside() -> None:
    """Neither draws inside a scope nor an exception there change the streams outside."""
    streams = rng.capture()
    expected = draws()
    rng.restore(streams)
    with pytest.raises(ZeroDivisionError), rng.scoped(1):
        draws()
        raise ZeroDivisionError
    assert draws() == expected


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**62 + 5])
def test_draws_in_a_scope_depend_only_on_its_seed(seed: int) -> None:
    """Draws inside a scope depend on its seed, and not on any draw before it."""
    with rng.scoped(seed):
        first = draws()
    draws()
    with rng.scoped(seed):
        second = draws()
    with rng.scoped(seed + 1):
        other = draws()
    assert first == second
    assert all(first[name] != other[name] for name in STREAMS)


def test_nested_scope_does_not_change_the_outer_one() -> None:
    """After an inner scope, the outer one continues with the draws it would have had."""
    with rng.scoped(1):
        plain = draws()
    with rng.scoped(1):
        with rng.scoped(2):
            draws()
        assert draws() == plain


def test_unknown_stream_is_reported() -> None:
    """A stream of an unknown library is reported by name, and the others are restored."""
    streams = rng.capture()
    expected = draws()
    problems = rng.restore({"jax": 1, **streams})
    assert len(problems) == 1
    assert "jax" in problems[0]
    assert draws() == expected


def test_missing_stream_is_reported() -> None:
    """A stream that is missing in the checkpoint is reported by name."""
    streams = rng.capture()
    del streams["numpy"]
    assert ["numpy" in problem for problem in rng.restore(streams)] == [True]


def _damaged() -> list[Any]:
    numpy_state = rng.capture()["numpy"]
    cases: list[tuple[str, str, Any]] = [
        ("python", "none", None),
        ("python", "empty", ()),
        ("python", "short", (3, (1, 2), None)),
        ("python", "huge", (3, (2**70,) * 625, None)),
        ("python", "text", (3, ("a",) * 625, None)),
        ("python", "dict", {}),
        ("torch", "none", None),
        ("torch", "short", torch.zeros(3, dtype=torch.uint8)),
        ("torch", "float", torch.zeros(5056)),
        ("torch", "noise", torch.full((5056,), 255, dtype=torch.uint8)),
        ("numpy", "none", None),
        ("numpy", "list", [1]),
        ("numpy", "keys-list", {**numpy_state, "keys": [1]}),
        ("numpy", "keys-short", {**numpy_state, "keys": torch.zeros(3)}),
        ("numpy", "position", {**numpy_state, "position": 10**30}),
        ("numpy", "no-gauss", {k: v for k, v in numpy_state.items() if k != "gauss"}),
        ("cuda", "of-a-machine-with-64", [torch.zeros(16, dtype=torch.uint8)] * 64),
        ("cuda", "none", None),
        ("mps", "of-another-machine", torch.zeros(44, dtype=torch.uint8)),
    ]
    return [pytest.param(name, state, id=f"{name}-{what}") for name, what, state in cases]


@pytest.mark.parametrize(("name", "state"), _damaged())
def test_damaged_stream_is_reported(name: str, state: Any) -> None:
    """A damaged stream, or that of a missing device, is reported; the others are restored."""
    streams = rng.capture()
    expected = draws()
    problems = rng.restore({**streams, name: state})
    assert len(problems) == 1
    assert name in problems[0]
    current = draws()
    assert all(current[other] == expected[other] for other in STREAMS if other != name)
