"""Random generators that a script owns and registers: their state, as streams among the others."""

import random
import sys
from typing import Any

import torch

from orchestrator.training.state.plain_values import from_plain, to_plain


def is_generator(value: Any) -> bool:
    """Whether it is a generator of NumPy (both kinds), of torch or of Python."""
    # What the script has not imported it cannot have made one of.
    numpy = sys.modules.get("numpy")
    kinds = (numpy.random.Generator, numpy.random.RandomState) if numpy else ()
    return isinstance(value, (torch.Generator, random.Random, *kinds))


def state_of(generator: Any) -> dict[str, Any]:
    """Its kind and its state, as values that the safe load accepts."""
    if isinstance(generator, torch.Generator):
        return {"kind": "torch", "state": generator.get_state()}
    if isinstance(generator, random.Random):
        version, keys, gauss = generator.getstate()
        # As a tensor: it then keeps its length from one snapshot to the next.
        state = {"version": version, "keys": torch.tensor(keys), "gauss": gauss}
        return {"kind": "python", "state": state}
    numpy_state = _bit_generator(generator).state
    plain = to_plain(numpy_state, "a random generator")
    return {"kind": numpy_state["bit_generator"], "state": plain}


def set_state(generator: Any, saved: dict[str, Any]) -> None:
    """Put it where it was. Raises ValueError for one of another kind."""
    kind, state = saved["kind"], saved["state"]
    if (here := state_of(generator)["kind"]) != kind:
        raise ValueError(f"it was a {kind}, now {here}")
    if kind == "torch":
        generator.set_state(state)
    elif kind == "python":
        generator.setstate((state["version"], tuple(state["keys"].tolist()), state["gauss"]))
    else:
        _bit_generator(generator).state = from_plain(state)


def _bit_generator(generator: Any) -> Any:
    # A RandomState keeps a second normal value beside its bit generator, in the legacy state.
    numpy = sys.modules["numpy"]
    if isinstance(generator, numpy.random.RandomState):
        return _Legacy(generator)
    return generator.bit_generator


class _Legacy:
    """A RandomState with the interface of a bit generator."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._generator.get_state(legacy=False)
        return state

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state)
