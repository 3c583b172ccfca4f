"""Digests of the parts of a checkpoint, to compare with the state of a resumed run.

The digest of the whole file shows whether its bytes are intact. These digests show whether the live
objects have loaded what the file holds, and whether two runs are at the same point. Only both ends
of a large tensor are read: two different states differ in every part of it, and reading all of it
at each snapshot would cost a sixth of the copy.
"""

import ctypes
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import xxhash

from orchestrator.training.state.progress import SUFFIX
from orchestrator.training.state.tensor_kinds import is_plain, is_uninitialized, plain_parts

# The part of each end of a tensor that counts.
SAMPLE_BYTES = 1 << 14
_ATOMS = frozenset((bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device))


def digest_parts(
    state: Mapping[str, Any],
    addresses: Mapping[int, int] | None = None,
    breathe: Callable[[], None] | None = None,
) -> dict[str, str]:
    """Return a digest of each registered object in a checkpoint's ``state``, and of ``rng``.

    ``addresses`` maps the ``_cdata`` of a storage to the address that its bytes are read from; by
    default they are read from the tensors themselves. ``breathe`` is called for each tensor.
    """
    parts = {key: part for key, part in state.items() if key.endswith(SUFFIX) or key == "rng"}
    return {key: digest(part, addresses, breathe) for key, part in parts.items()}


def digest(
    value: Any,
    addresses: Mapping[int, int] | None = None,
    breathe: Callable[[], None] | None = None,
) -> str:
    """Return a hexadecimal digest that is equal for equal plain values and tensors.

    The order of dicts and sets does not count.
    """
    hasher = Hasher(addresses, breathe)
    hasher.add(value)
    return hasher.hexdigest()


def digest_of_all_bytes(tensor: torch.Tensor) -> str:
    """Return a digest of every byte of a contiguous tensor on the CPU."""
    size = tensor.numel() * tensor.element_size()
    if not size:
        return ""
    memory = (ctypes.c_char * size).from_address(tensor.data_ptr())
    return xxhash.xxh3_64_hexdigest(memory)


class Hasher:
    """A digest of values that are added one after another.

    Attributes:
        hexdigest: Returns the digest of what was added so far, in hexadecimal.
        update: Adds bytes.
    """

    def __init__(
        self,
        addresses: Mapping[int, int] | None = None,
        breathe: Callable[[], None] | None = None,
        sample_bytes: int = SAMPLE_BYTES,
    ) -> None:
        """Read at most ``sample_bytes`` of each end of a tensor; the rest is as for ``digest``."""
        self._addresses = addresses
        self._breathe = breathe
        self._sample_bytes = sample_bytes
        self._hash = xxhash.xxh3_128()
        self.hexdigest = self._hash.hexdigest
        self.update = self._hash.update

    def add(self, value: Any) -> None:
        """Add a plain value or a tensor, or a container of them."""
        if isinstance(value, torch.Tensor):
            if self._breathe is not None:
                self._breathe()
            if is_plain(value):
                self._add_text(f"{value.dtype}{tuple(value.shape)}")
                self._add_bytes(value)
            else:
                self._add_unusual(value)
        elif isinstance(value, dict):
            self._add_text(f"dict{len(value)}")
            for key in sorted(value, key=repr):
                self._add_text(repr(key))
                self.add(value[key])
        elif isinstance(value, (list, tuple)):
            self._add_text(f"list{len(value)}")
            self._add_items(value)
        elif isinstance(value, (set, frozenset)):
            self._add_text(repr(sorted(map(repr, value))))
        else:
            self._add_text(_text_of(value))

    def _add_unusual(self, tensor: torch.Tensor) -> None:
        # A nested tensor has no shape.
        shape = "" if tensor.is_nested or is_uninitialized(tensor) else tuple(tensor.shape)
        self._add_text(f"{tensor.dtype}{shape}{tensor.layout}")
        for part in plain_parts(tensor):
            self._add_text(f"{part.dtype}{tuple(part.shape)}")
            self._add_bytes_of_view(part)

    def _add_text(self, text: str) -> None:
        self.update(text.encode(errors="surrogatepass"))

    def _add_items(self, values: Sequence[Any]) -> None:
        if set(map(type, values)) <= _ATOMS:
            self._add_text(repr(list(values)))
            return
        for value in values:
            self.add(value)

    def _add_bytes(self, tensor: torch.Tensor) -> None:
        if self._addresses is not None:
            storage = tensor.untyped_storage()
            begin = self._addresses[storage._cdata]
            if not tensor.is_contiguous():
                self._add_bytes_of_view(_view_at(begin, storage.nbytes(), tensor))
                return
            address = begin + int(tensor.storage_offset()) * tensor.element_size()
            self._sample(address, tensor.numel() * tensor.element_size())
        elif tensor.is_contiguous() and tensor.device.type == "cpu":
            self._sample(tensor.data_ptr(), tensor.numel() * tensor.element_size())
        else:
            self._add_bytes_of_view(tensor)

    def _add_bytes_of_view(self, tensor: torch.Tensor) -> None:
        """Add the bytes in the order of the elements, for any device, stride and offset."""
        flat, count = tensor.detach().reshape(-1), self._sample_bytes // tensor.element_size()
        if flat.numel() > 2 * count:
            flat = torch.cat((flat[:count], flat[-count:]))
        flat = flat.contiguous().cpu()  # of one dimension, reshape() leaves the strides
        self._sample(flat.data_ptr(), flat.numel() * flat.element_size())

    def _sample(self, address: int, size: int) -> None:
        if not size:
            return
        part = self._sample_bytes
        if size <= 2 * part:
            self.update(ctypes.string_at(address, size))
        else:
            self.update(ctypes.string_at(address, part))
            self.update(ctypes.string_at(address + size - part, part))


def _text_of(value: Any) -> str:
    if type(value) in _ATOMS:
        return repr(value)
    # For example a NumPy integer. Of any other object only the class counts: its text may contain a
    # memory address.
    if hasattr(value, "__index__"):
        return repr(operator.index(value))
    return type(value).__qualname__


def _view_at(address: int, size: int, like: torch.Tensor) -> torch.Tensor:
    """Return a view of ``size`` bytes at ``address`` with the dtype and strides of ``like``."""
    memory = (ctypes.c_uint8 * size).from_address(address)
    typed = torch.frombuffer(memory, dtype=like.dtype, count=size // like.element_size())
    return typed.as_strided(like.shape, like.stride(), like.storage_offset())
