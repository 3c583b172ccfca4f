"""The random number streams of a training process: capture and restore.

Python, NumPy's legacy generator, torch on the CPU and on every CUDA or MPS device. Taking them
changes none of them, and restoring one after the other leaves each as it was when taken.
"""

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch


def capture() -> dict[str, Any]:
    """All streams, as values that the safe load accepts."""
    streams: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if numpy := sys.modules.get("numpy"):
        name, keys, position, has_gauss, gauss = numpy.random.get_state()
        streams["numpy"] = {
            "name": str(name),
            "keys": torch.from_numpy(keys.astype("int64")),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        }
    if _cuda_in_use():
        streams["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        streams["mps"] = torch.mps.get_rng_state()
    return streams


def restore(streams: dict[str, Any]) -> list[str]:
    """Put the streams back; returns why any could not be, for the session's exactness."""
    problems = []
    for name, state in streams.items():
        try:
            _RESTORE[name](state)
        except KeyError:
            problems.append(f"the {name} random stream is unknown here")
        except (RuntimeError, TypeError, ValueError) as error:
            problems.append(f"the {name} random stream could not be restored ({error})")
    current = capture()
    problems += [f"the checkpoint has no {name} random stream" for name in current.keys() - streams]
    return problems


@contextlib.contextmanager
def scoped(seed: int) -> Iterator[None]:
    """Inside, the CPU streams are a function of ``seed``; afterwards they are as before."""
    before = random.getstate(), torch.get_rng_state()
    numpy = sys.modules.get("numpy")
    numpy_before = numpy.random.get_state() if numpy else None
    try:
        seed_all(seed)
        yield
    finally:
        random.setstate(before[0])
        torch.set_rng_state(before[1])
        if numpy and numpy_before is not None:
            numpy.random.set_state(numpy_before)


def seed_all(seed: int) -> None:
    """Seed the CPU streams. torch.manual_seed would seed every device too."""
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)


def _cuda_in_use() -> bool:
    # Asking a process that has not touched CUDA for its state would create a context.
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _restore_numpy(state: dict[str, Any]) -> None:
    import numpy

    keys = state["keys"].numpy().astype("uint32")
    numpy.random.set_state(
        (state["name"], keys, state["position"], state["has_gauss"], state["gauss"])
    )


def _restore_cuda(states: list[torch.Tensor]) -> None:
    if len(states) != torch.cuda.device_count():
        raise RuntimeError(f"{len(states)} devices then, {torch.cuda.device_count()} now")
    torch.cuda.set_rng_state_all(states)


_RESTORE: dict[str, Callable[[Any], None]] = {
    "python": random.setstate,
    "numpy": _restore_numpy,
    "torch": torch.set_rng_state,
    "cuda": _restore_cuda,
    "mps": lambda state: torch.mps.set_rng_state(state),
}
