"""The random number streams of a training process: capture, restore, and separate streams.

The streams are those of Python, of NumPy's legacy generator, of torch on the CPU and on every CUDA
or MPS device, and of the generators that a script has registered. Capturing changes none of them.
"""

import contextlib
import hashlib
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from orchestrator.training.state.generators import (
    position_of,
    seed_generator,
    set_position,
    set_state,
    set_state_of_python,
    state_of,
    state_of_python,
)
from orchestrator.training.state.plain_values import from_plain, to_plain


def capture(generators: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return all streams, as values that the safe load accepts.

    ``generators`` are those that the script has registered, by name.
    """
    streams: dict[str, Any] = {"python": state_of_python(random), "torch": torch.get_rng_state()}
    if numpy := sys.modules.get("numpy"):
        streams["numpy"] = _state_of_numpy(numpy)
    if cuda_in_use():
        streams["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        streams["mps"] = torch.mps.get_rng_state()
    if generators:
        states = {name: state_of(generator) for name, generator in generators.items()}
        streams["generators"] = states
    return streams


def restore(streams: dict[str, Any], generators: Mapping[str, Any] | None = None) -> list[str]:
    """Restore the streams, and return why any of them could not be restored, one text each."""
    generators = generators or {}
    setters = _RESTORE | {
        f"generator {name}": partial(set_state, generator) for name, generator in generators.items()
    }
    saved = {name: state for name, state in streams.items() if name != "generators"}
    saved |= {f"generator {n}": s for n, s in streams.get("generators", {}).items()}
    problems = []
    for name, state in saved.items():
        if name not in setters:
            problems.append(f"the random stream {name} is unknown here")
            continue
        try:
            setters[name](state)
        # A damaged state or a missing library may raise any exception.
        except Exception as error:
            problems.append(f"the random stream {name} could not be restored ({error})")
    current = capture().keys() | (setters.keys() - _RESTORE.keys())
    problems += [f"the checkpoint has no random stream {n}" for n in sorted(current - saved.keys())]
    return problems


@contextlib.contextmanager
def scoped(seed: int, generators: Iterable[Any] = ()) -> Iterator[None]:
    """Seed the CPU streams and ``generators`` inside the block, and restore them after it."""
    with Streams(seed, generators):
        yield


class Streams:
    """Separate CPU streams, and states of ``generators``, for the ``with`` blocks of this object.

    They are seeded in the first block, and each block continues where the one before ended. Outside
    of the blocks the streams of the process are unchanged.
    """

    def __init__(self, seed: int, generators: Iterable[Any] = ()) -> None:
        self._seed = seed
        self._generators = list({id(g): g for g in generators}.values())
        self._inside: tuple[Any, ...] | None = None
        self._outside: tuple[Any, ...] = ()

    def __enter__(self) -> None:
        self._outside = self._get()
        if self._inside is None:
            seed_all(self._seed)
            for number, generator in enumerate(self._generators):
                seed_generator(generator, derive_seed(self._seed, number) if number else self._seed)
        else:
            self._set(self._inside)

    def __exit__(self, *error: object) -> None:
        self._inside = self._get()
        self._set(self._outside)

    def _get(self) -> tuple[Any, ...]:
        numpy = sys.modules.get("numpy")
        return (
            random.getstate(),
            torch.get_rng_state(),
            numpy.random.get_state() if numpy else None,
            [position_of(generator) for generator in self._generators],
        )

    def _set(self, state: tuple[Any, ...]) -> None:
        random.setstate(state[0])
        torch.set_rng_state(state[1])
        if state[2] is not None:
            sys.modules["numpy"].random.set_state(state[2])
        for generator, generator_state in zip(self._generators, state[3], strict=True):
            set_position(generator, generator_state)


def drawing(begin: Callable[[], Iterator[Any]], streams: Streams) -> Iterator[Any]:
    """Yield the items of the iterator that ``begin`` returns; both run inside ``streams``."""
    end = object()
    with streams:
        iterator = begin()
    while True:
        with streams:
            item = next(iterator, end)
        if item is end:
            return
        yield item


def derive_seed(*parts: int) -> int:
    """Return a seed of 63 bits from the parts; equal parts give equal seeds on every machine."""
    text = ",".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def seed_all(seed: int) -> None:
    """Seed the CPU streams."""
    random.seed(seed)
    # Not torch.manual_seed(), which would seed every device too.
    torch.default_generator.manual_seed(seed)
    if numpy := sys.modules.get("numpy"):
        _seed_numpy(numpy, seed % 2**32)


def cuda_in_use() -> bool:
    """Return whether this process has initialized CUDA."""
    # Where it has not, reading the state of a device would create a context.
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _state_of_numpy(numpy: Any) -> dict[str, Any]:
    state = numpy.random.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":  # since set_bit_generator()
        return {"name": str(state["bit_generator"]), "state": to_plain(state, "NumPy's stream")}
    return {
        "name": "MT19937",
        "keys": torch.from_numpy(state["state"]["key"].astype("int64")),
        "position": int(state["state"]["pos"]),
        "has_gauss": int(state["has_gauss"]),
        "gauss": float(state["gauss"]),
    }


def _seed_numpy(numpy: Any, seed: int) -> None:
    state = numpy.random.get_state(legacy=False)
    if state["bit_generator"] == "MT19937":
        numpy.random.seed(seed)
    else:
        kind = type(numpy.random.get_bit_generator())
        numpy.random.set_state({**kind(seed).state, "has_gauss": 0, "gauss": 0.0})


def _restore_numpy(state: dict[str, Any]) -> None:
    import numpy

    here = numpy.random.get_state(legacy=False)["bit_generator"]
    if here != state["name"]:
        raise ValueError(f"its bit generator was {state['name']}, and is {here} now")
    if "state" in state:
        numpy.random.set_state(from_plain(state["state"]))
        return
    keys = state["keys"].numpy().astype("uint32")
    numpy.random.set_state(
        (state["name"], keys, state["position"], state["has_gauss"], state["gauss"])
    )


def _restore_cuda(states: list[torch.Tensor]) -> None:
    if len(states) != torch.cuda.device_count():
        raise RuntimeError(f"there were {len(states)} devices, and {torch.cuda.device_count()} now")
    torch.cuda.set_rng_state_all(states)


_RESTORE: dict[str, Callable[[Any], None]] = {
    "python": partial(set_state_of_python, random),
    "numpy": _restore_numpy,
    "torch": torch.set_rng_state,
    "cuda": _restore_cuda,
    "mps": lambda state: torch.mps.set_rng_state(state),
}
