"""The image of a checkpoint file: what torch.save would write, laid out without the tensor bytes.

Under ``torch.serialization.skip_data``, torch.save writes everything but the bytes of storages, and
skips over those. What it skips is where each storage belongs, in the order in which pickle meets
them. The bytes can then be copied there at memory speed, and the result is an ordinary file.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, cast

import torch
from torch.utils.serialization import config as serialization_config

from orchestrator.errors import UnstorableError
from orchestrator.training.saving.breather import never
from orchestrator.training.saving.fast_pickle import TYPED_DTYPES, fast_pickle

# Aligned to a page the layout hardly ever moves when the pickled part grows; for many small tensors
# that would cost more than they hold.
PAGE_ALIGNMENT = 4096
LEAST_ALIGNMENT = 64
LEAST_MEAN_BYTES = 16 * PAGE_ALIGNMENT
# What torch.save writes for each storage besides its bytes and their alignment, and for a file.
ENTRY_BYTES = 256
FILE_BYTES = 1536

_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
_DICTS = frozenset({dict, OrderedDict})
_CHANGEABLE = _TENSORS | _DICTS | {list, tuple, set}


class InexpressibleError(Exception):
    """The state holds tensors whose bytes torch.save does not write storage by storage."""


@dataclass
class Frozen:
    """A state of which only the bytes of its tensors can still change.

    Attributes:
        tree: The containers and plain values, copied, with tensors that share the live storages.
        storages: The distinct storages, in the order in which pickle meets them.
        sizes: Their sizes at that moment, in bytes.
    """

    tree: Any
    storages: list[torch.UntypedStorage]
    sizes: list[int]


def freeze(state: Any) -> Frozen:
    """Copy the containers and plain values of ``state`` and refer to its tensors.

    An object that occurs twice occurs twice in the copy as well.

    Raises:
        InexpressibleError: A tensor has a layout whose bytes are not written storage by storage.
        UnstorableError: torch.save refuses the state, because of tensors that share memory.
    """
    freezer = _Freezer()
    tree = freezer.freeze(state)
    storages = list(freezer.storages.values())
    return Frozen(tree, storages, [storage.nbytes() for storage in storages])


class _Freezer:
    def __init__(self) -> None:
        self.storages: dict[int, torch.UntypedStorage] = {}
        self._seen: dict[int, Any] = {}
        self._dtypes: dict[int, torch.dtype] = {}

    def freeze(self, value: Any) -> Any:
        kind = type(value)
        if kind not in _CHANGEABLE:
            return value
        frozen = self._seen.get(id(value))
        if frozen is None:
            copy = self._tensor if kind in _TENSORS else self._container
            frozen = self._seen[id(value)] = copy(value)
        return frozen

    def _container(self, value: Any) -> Any:
        kind = type(value)
        if kind not in _DICTS:
            return kind([self.freeze(item) for item in value])
        frozen = kind({key: self.freeze(item) for key, item in value.items()})
        if hasattr(value, "__dict__"):
            frozen.__dict__.update(value.__dict__)  # a module's state_dict carries _metadata
        return frozen

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta:
            raise InexpressibleError(f"a tensor of the layout {tensor.layout} on {tensor.device}")
        if tensor.is_quantized:
            raise InexpressibleError("a quantised tensor, which skip_data refuses")
        storage = tensor.untyped_storage()
        self.storages.setdefault(storage._cdata, storage)
        self._check_dtype(storage, tensor.dtype)
        # A new tensor object: an assignment to .data of the script's own would change this one.
        alias = tensor.detach()
        if type(tensor) is torch.nn.Parameter:
            return torch.nn.Parameter(alias, requires_grad=tensor.requires_grad)
        return alias.requires_grad_() if tensor.requires_grad else alias

    def _check_dtype(self, storage: torch.UntypedStorage, dtype: torch.dtype) -> None:
        # torch.save would refuse this only once the layout is made, beside the training.
        known = self._dtypes.setdefault(storage.data_ptr(), dtype)
        if known is not dtype and {known, dtype} <= TYPED_DTYPES and storage.nbytes():
            problem = f"tensors of different types, {known} and {dtype}, share their memory"
            raise UnstorableError(where="the state", problem=problem)


@dataclass(frozen=True)
class Layout:
    """Where everything is in the image; offsets and sizes in bytes.

    Attributes:
        sizes: The size of each storage.
        offsets: The offset of each storage.
        pieces: Everything between the storages, each with its offset.
        image_bytes: The size of the image.
    """

    sizes: list[int]
    offsets: list[int]
    pieces: list[tuple[int, bytes]]
    image_bytes: int


def provisional(frozen: Frozen) -> Layout:
    """Return places for the storages that take no time to find: one after the other.

    No storage comes later in the file, so that all can be moved up to where ``lay_out`` has them.
    The size of the image is an estimate.
    """
    sizes = frozen.sizes
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end if size else 0)
        end += -(-size // LEAST_ALIGNMENT) * LEAST_ALIGNMENT
    room = end + len(sizes) * (ENTRY_BYTES + _alignment(sizes)) + FILE_BYTES
    return Layout(sizes, offsets, [], room)


def lay_out(frozen: Frozen, breathe: Callable[[], None] = never) -> Layout:
    """Lay the file out; ``breathe`` is called after each small piece of the work.

    Raises:
        InexpressibleError: torch.save skips other bytes than those of the frozen storages, or one
            of them has been resized or freed meanwhile.
        UnstorableError: torch.save refuses the state.
    """
    sizes = frozen.sizes
    sink = _Sink(breathe)
    try:
        with torch.serialization.skip_data(), _aligned(sizes):
            torch.save(frozen.tree, cast(IO[bytes], sink), pickle_module=fast_pickle(breathe))
    except RuntimeError as error:
        raise UnstorableError(where="the state", problem=str(error)) from error
    gaps = iter(sink.gaps)
    # torch.save skips nothing for an empty storage.
    placed = [next(gaps, (0, -1)) if size else (0, 0) for size in sizes]
    if [length for _, length in placed] != sizes or next(gaps, None) is not None:
        raise InexpressibleError(
            "a tensor that was resized or freed, or that torch.save alone can write"
        )
    return Layout(sizes, [offset for offset, _ in placed], sink.pieces(), sink.end)


def _alignment(sizes: Sequence[int]) -> int:
    mean_bytes = sum(sizes) / max(1, len(sizes))
    return PAGE_ALIGNMENT if mean_bytes >= LEAST_MEAN_BYTES else LEAST_ALIGNMENT


@contextlib.contextmanager
def _aligned(sizes: Sequence[int]) -> Iterator[None]:
    wanted = _alignment(sizes)
    with serialization_config.patch("save.storage_alignment", wanted):  # type: ignore[attr-defined]
        yield


@dataclass
class _Sink:
    """The file that torch.save writes to: keeps what is written, records what is skipped."""

    breathe: Callable[[], None]
    end: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)
    _runs: list[tuple[int, list[bytes]]] = field(default_factory=lambda: [(0, [])])

    def write(self, data: bytes) -> int:
        self._runs[-1][1].append(bytes(data))
        self.end += len(data)
        return len(data)

    def seek(self, distance: int, whence: int) -> int:
        if whence != 1:
            raise InexpressibleError("torch.save seeks to an absolute position")
        self.breathe()
        self.gaps.append((self.end, distance))
        self.end += distance
        self._runs.append((self.end, []))
        return self.end

    def flush(self) -> None:
        """Do nothing; torch.save calls this at the end."""

    def pieces(self) -> list[tuple[int, bytes]]:
        return [(offset, b"".join(parts)) for offset, parts in self._runs]
