"""Registered random generators and wrapped modules are captured and restored."""

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.training.state import rng
from orchestrator.training.state.object_restore import ObjectRestore
from orchestrator.training.state.registered_objects import Registry
from orchestrator.training.state.wrappers import unwrapped

GENERATORS: dict[str, tuple[Callable[[int], Any], Callable[[Any], Any]]] = {
    name: (lambda seed, kind=kind: np.random.Generator(kind(seed)), lambda g: g.normal())
    for name, kind in vars(np.random).items()
    if name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
} | {
    "legacy": (np.random.RandomState, lambda g: g.randn()),
    "torch": (
        lambda seed: torch.Generator().manual_seed(seed),
        lambda g: torch.randn(1, generator=g).item(),
    ),
    "python": (random.Random, lambda g: g.gauss()),
}


def saved_and_loaded(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("name", GENERATORS)
def test_registered_generator_continues_after_a_restore(name: str) -> None:
    """A new generator with the saved state draws what the saved one would have drawn next."""
    make, draw = GENERATORS[name]
    saved, fresh = make(1), make(2)
    draw(saved)  # after an odd number of normal draws, some generators have one cached
    registry = Registry()
    registry.add({"noise": saved})
    assert registry.capture() == {}
    streams = saved_and_loaded(rng.capture(registry.generators))
    expected = [draw(saved) for _ in range(3)]
    assert rng.restore(streams, {"noise": fresh}) == []
    assert [draw(fresh) for _ in range(3)] == expected


def test_generator_that_does_not_fit_is_reported() -> None:
    """A generator that is new, missing or of another kind is reported by name."""
    streams = rng.capture({"gone": random.Random(1), "other": np.random.default_rng(1)})
    here = {"new": random.Random(1), "other": np.random.Generator(np.random.Philox(1))}
    problems = rng.restore(streams, here)
    assert problems == [
        "the random stream generator gone is unknown here",
        "the random stream generator other could not be restored "
        "(its kind was PCG64, and is Philox now)",
        "the checkpoint has no random stream generator new",
    ]


class Nested(nn.Module):
    """A model with a part that may be compiled, and a layer that has a version."""

    def __init__(self, compiled: bool) -> None:
        super().__init__()
        part = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.part = torch.compile(part) if compiled else part
        self.head = nn.Linear(2, 1)


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Nested(False),
    "compiled": lambda: torch.compile(Nested(False)),  # type: ignore[return-value]
    "parallel": lambda: nn.DataParallel(Nested(False)),
    "both": lambda: torch.compile(nn.DataParallel(Nested(False))),  # type: ignore[return-value]
    "a part": lambda: Nested(True),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(Nested(False)),
}


@pytest.mark.parametrize("into", sorted(WRAPPED.keys() - {"averaged"}))
@pytest.mark.parametrize("of", sorted(WRAPPED.keys() - {"averaged"}))
def test_wrapped_model_is_stored_under_plain_names(of: str, into: str) -> None:
    """A model is stored under its plain names, and its state fits it in any other wrapper."""
    saved, live = WRAPPED[of](), WRAPPED[into]()
    registry, live_registry = Registry(), Registry()
    registry.add({"model": saved})
    live_registry.add({"model": live})
    content = saved_and_loaded(registry.capture())
    state = content["model_state_dict"]
    assert state.keys() == Nested(False).state_dict().keys()
    assert state._metadata["part.1"]["version"] == 2
    ObjectRestore(live_registry.objects, Path("state.pt")).restore(content)
    for expected, restored in zip(saved.parameters(), live.parameters(), strict=True):
        assert torch.equal(expected, restored)


def test_averaged_model_is_not_unwrapped() -> None:
    """An averaged model stays as it is: it has a counter beside the module inside it."""
    averaged = WRAPPED["averaged"]()
    assert unwrapped(averaged) is averaged
