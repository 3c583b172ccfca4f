"""Capture and restore of random generators that a script owns and registers."""

import importlib
import random
import sys
from typing import Any, Protocol

import torch

from orchestrator.training.state.plain_values import from_plain, to_plain


def is_generator(value: Any) -> bool:
    """Return whether this is a random generator of NumPy (both kinds), torch or Python.

    One that draws from the operating system has no state, and is none.
    """
    if isinstance(value, random.SystemRandom):
        return False
    # A script that has not imported NumPy has no generator of it.
    numpy = sys.modules.get("numpy")
    kinds = (numpy.random.Generator, numpy.random.RandomState) if numpy else ()
    return isinstance(value, (torch.Generator, random.Random, *kinds))


def state_of(generator: Any) -> dict[str, Any]:
    """Return the kind and the state of a generator, as values that the safe load accepts."""
    if isinstance(generator, torch.Generator):
        return {"kind": "torch", "state": generator.get_state()}
    if isinstance(generator, random.Random):
        return {"kind": "python", "state": state_of_python(generator)}
    numpy_state = _bit_generator(generator).state
    plain = to_plain(numpy_state, "a random generator")
    return {"kind": numpy_state["bit_generator"], "state": plain}


def set_state(generator: Any, saved: dict[str, Any]) -> None:
    """Set a generator to a ``saved`` state. Raises ValueError if that is of another kind."""
    kind, state = saved["kind"], saved["state"]
    if (here := state_of(generator)["kind"]) != kind:
        raise ValueError(f"its kind was {kind}, and is {here} now")
    if kind == "torch":
        generator.set_state(state)
    elif kind == "python":
        set_state_of_python(generator, state)
    else:
        _bit_generator(generator).state = from_plain(state)


def new_generator(kind: str) -> Any:
    """Return a generator of the ``kind`` that ``state_of`` names."""
    if kind == "torch":
        return torch.Generator()
    if kind == "python":
        return random.Random()
    numpy_random = importlib.import_module("numpy.random")
    return numpy_random.Generator(getattr(numpy_random, kind)())


def seed_generator(generator: Any, seed: int) -> None:
    """Seed a generator, of whatever kind, with a number of at most 63 bits."""
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, random.Random):
        generator.seed(seed)
    elif isinstance(generator, sys.modules["numpy"].random.RandomState):
        kind = type(generator._bit_generator)
        generator.set_state({**kind(seed).state, "has_gauss": 0, "gauss": 0.0})
    else:
        generator.bit_generator.state = type(generator.bit_generator)(seed).state


def position_of(generator: Any) -> Any:
    """Return the state of a generator in its own form, to be set again in this process."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    return _bit_generator(generator).state


def set_position(generator: Any, position: Any) -> None:
    """Set a generator to what ``position_of`` returned."""
    if isinstance(generator, torch.Generator):
        generator.set_state(position)
    elif isinstance(generator, random.Random):
        generator.setstate(position)
    else:
        _bit_generator(generator).state = position


class PythonGenerator(Protocol):
    """The state of a ``random.Random``, or of the module ``random`` itself."""

    def getstate(self) -> tuple[Any, ...]:
        """Return the state."""

    def setstate(self, state: tuple[Any, ...]) -> None:
        """Set the state."""


def state_of_python(generator: PythonGenerator) -> dict[str, Any]:
    """Return the state of Python's generator as values that the safe load accepts."""
    version, keys, gauss = generator.getstate()
    # A tensor, so that the pickled part of a snapshot keeps its length from one to the next.
    return {"version": version, "keys": torch.tensor(keys), "gauss": gauss}


def set_state_of_python(generator: PythonGenerator, state: dict[str, Any]) -> None:
    """Set Python's generator to a state from ``state_of_python``."""
    generator.setstate((state["version"], tuple(state["keys"].tolist()), state["gauss"]))


def _bit_generator(generator: Any) -> Any:
    # The legacy state of a RandomState includes a cached normal value; its bit generator has none.
    numpy = sys.modules["numpy"]
    if isinstance(generator, numpy.random.RandomState):
        return _LegacyBitGenerator(generator)
    return generator.bit_generator


class _LegacyBitGenerator:
    """The ``state`` of a RandomState, read and set as that of a bit generator."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._generator.get_state(legacy=False)
        return state

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state)
