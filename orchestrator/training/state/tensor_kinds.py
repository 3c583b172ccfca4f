"""What tensors of unusual kinds consist of: sparse, nested, quantised, float8, uninitialised.

torch lacks sums, comparisons or storages for some of them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

_PARTS: dict[torch.layout, Callable[[Any], list[torch.Tensor]]] = {
    torch.sparse_coo: lambda t: [t._indices(), t._values()],
    torch.sparse_csr: lambda t: [t.crow_indices(), t.col_indices(), t.values()],
    torch.sparse_bsr: lambda t: [t.crow_indices(), t.col_indices(), t.values()],
    torch.sparse_csc: lambda t: [t.ccol_indices(), t.row_indices(), t.values()],
    torch.sparse_bsc: lambda t: [t.ccol_indices(), t.row_indices(), t.values()],
}


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether the elements are in a storage, at an offset and in strides."""
    if is_uninitialized(tensor) or tensor.layout is not torch.strided:
        return False
    return not (tensor.is_nested or tensor.is_quantized or tensor.is_meta)


def is_uninitialized(tensor: torch.Tensor) -> bool:
    """Return whether this is a parameter or buffer of a lazy module before its first forward."""
    return bool(is_lazy(tensor))


def uninitialized(kind: str) -> torch.Tensor:
    """Return an uninitialised ``"parameter"`` or ``"buffer"``."""
    made: torch.Tensor = {"parameter": UninitializedParameter, "buffer": UninitializedBuffer}[
        kind
    ]()
    return made


def plain_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return plain tensors that hold all elements; empty where the elements cannot be read."""
    if is_plain(tensor):
        return [tensor] if has_its_storage(tensor) else []
    if is_uninitialized(tensor) or tensor.is_meta:
        return []
    try:
        tensor = tensor.detach()
        if tensor.is_nested:
            return [part for each in tensor.unbind() for part in plain_parts(each)]
        if tensor.is_quantized:
            return [tensor.int_repr()]
        if tensor.layout in _PARTS:
            return _PARTS[tensor.layout](tensor)
        return [tensor.to_dense()]
    except (RuntimeError, Warning):  # a kind that this version of torch cannot take apart
        return []


def has_its_storage(tensor: torch.Tensor) -> bool:
    """Return whether the storage of a plain tensor is as large as the tensor needs it.

    A storage is freed by ``resize_(0)``, for example where weights are fetched only for their
    layer. To read such a tensor ends the process.
    """
    nbytes = tensor.untyped_storage().nbytes()
    if nbytes >= (tensor.storage_offset() + tensor.numel()) * tensor.itemsize:
        return True
    # Elements may share their place, as after expand().
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    return not tensor.numel() or nbytes >= (tensor.storage_offset() + last + 1) * tensor.itemsize


def all_finite(tensor: torch.Tensor) -> bool:
    """Return whether every element is finite, as far as torch can tell for this kind of tensor."""
    return all(map(_are_finite, plain_parts(tensor)))


def _are_finite(tensor: torch.Tensor) -> bool:
    try:
        # A sum takes no memory of the tensor's size, and is finite only if every element is. An
        # infinite sum may also be an overflow, so the elements are checked then.
        return bool(torch.isfinite(torch.sum(tensor))) or bool(torch.isfinite(tensor).all())
    except NotImplementedError:
        pass
    try:
        # Small floats have no sum.
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        return bool(torch.isfinite(tensor.to(torch.float32)).all())
    except (RuntimeError, Warning):  # bits, or several numbers in a byte
        return True
