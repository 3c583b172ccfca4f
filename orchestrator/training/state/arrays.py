"""NumPy arrays as tensors that share their memory, and back.

NumPy is not imported here: torch works without it, and so may the script.
"""

import sys
from typing import Any

import torch

from orchestrator.errors import UnstorableError


def is_array(value: Any) -> bool:
    """Return whether this is an array, also one that is mapped from a file."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) in (numpy.ndarray, numpy.memmap)


def is_scalar(value: Any) -> bool:
    """Return whether this is a number of NumPy's own types."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def is_dtype(value: Any) -> bool:
    """Return whether this is a dtype of NumPy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.dtype)


def as_tensor(value: Any, where: str) -> torch.Tensor:
    """Return a tensor that shares the memory of an array where that is possible.

    Raises:
        UnstorableError: torch has no such dtype.
    """
    numpy = sys.modules["numpy"]
    array = numpy.asarray(value)
    if not (array.flags.writeable and array.dtype.isnative and min(array.strides, default=0) >= 0):
        array = array.astype(array.dtype.newbyteorder("="))
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise UnstorableError(where, f"it is a NumPy array of {array.dtype} ({error})") from None


def restored(saved: torch.Tensor, live: Any) -> Any:
    """Return ``live`` with the values of ``saved`` if they fit, else a new array."""
    array = saved.numpy()
    fits = is_array(live) and live.flags.writeable and live.shape == array.shape
    if fits and live.dtype.newbyteorder("=") == array.dtype:
        live[...] = array
        return live
    return array.copy()


def scalar_of(saved: torch.Tensor) -> Any:
    """Return a number of NumPy's own types."""
    return saved.numpy()[()]
