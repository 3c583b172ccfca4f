"""A pickler for torch.save that writes the same bytes in about half the time.

torch asks of every value whether it is a storage, and reduces each tensor by way of what any kind
of tensor may need. With many small tensors this is most of what a save takes.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, SimpleNamespace
from typing import Any

import torch

# None of these is a storage, nor is a value of any of these types.
_NOT_STORAGES = frozenset(
    {bool, int, float, str, bytes, type(None), tuple, list, dict, OrderedDict}
    | {torch.Tensor, type, FunctionType, BuiltinFunctionType}
)
# torch.save writes the storages of these as storages of their type, those of others as bytes.
TYPED_DTYPES = frozenset(
    {torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool}
    | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
    | {torch.complex64, torch.complex128}
)
_ORDINARY_DEVICES = frozenset({"cpu", "cuda"})


def fast_pickle(breathe: Callable[[], None]) -> Any:
    """Return a ``pickle_module`` for torch.save; its pickler calls ``breathe`` for each tensor."""

    class Pickler(pickle.Pickler):
        def __init_subclass__(cls) -> None:
            # torch derives its pickler from this one, and defines persistent_id there.
            of_storage: Callable[[Any, Any], Any] = vars(cls)["persistent_id"]

            def persistent_id(self: Any, value: Any) -> Any:
                return None if type(value) in _NOT_STORAGES else of_storage(self, value)

            cls.persistent_id = persistent_id  # type: ignore[method-assign]

        def reducer_override(self, value: Any) -> Any:
            if type(value) is not torch.Tensor:
                return NotImplemented
            breathe()
            return _reduced(value) if _is_ordinary(value) else NotImplemented

    return SimpleNamespace(Pickler=Pickler, __name__=__name__)


def _is_ordinary(tensor: torch.Tensor) -> bool:
    """Return whether nothing but type, place, shape and strides is to be stored with the bytes."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.dtype not in TYPED_DTYPES:
        return False
    is_marked = tensor.is_neg() or tensor.is_conj() or bool(vars(tensor))
    return tensor.device.type in _ORDINARY_DEVICES and not is_marked


def _reduced(tensor: torch.Tensor) -> tuple[Any, tuple[Any, ...]]:
    """Return what ``Tensor.__reduce_ex__`` returns for an ordinary tensor."""
    storage = torch.TypedStorage(  # type: ignore[no-untyped-call]
        wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True
    )
    return torch._utils._rebuild_tensor_v2, (
        storage,
        tensor.storage_offset(),
        tuple(tensor.size()),
        tensor.stride(),
        tensor.requires_grad,
        OrderedDict(),
    )
