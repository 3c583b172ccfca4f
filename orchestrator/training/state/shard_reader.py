"""Puts the pieces of sharded tensors from the files of ranks together, as this rank holds them.

Each rank reads what it needs from the files, and asks no other rank.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from orchestrator.checkpoint.boxes import Box
from orchestrator.checkpoint.contents import STATE_FILE
from orchestrator.checkpoint.shards import KeyPath, Layout, ShardedTensor, ShardIndex, shown

# The local tensors of a rank other than 0, in its file.
SHARDS = "shards"
# What is put together may be larger than the files, since tied tensors are there once. Any number
# of names could share one storage.
MOST_TIED = 10
FREE_BYTES = 1 << 30

Load = Callable[[str], Mapping[str, Any]]
"""Returns the content of a checkpoint's file."""


class ShardReader:
    """Reads boxes of the sharded tensors of one checkpoint."""

    def __init__(self, index: ShardIndex, load: Load) -> None:
        self._index = index
        self._load = load
        self._loaded: dict[str, Mapping[str, Any]] = {}
        self._storages: set[int] = set()
        self._stored_bytes = 0
        self._made_bytes = 0

    @property
    def tensors(self) -> Mapping[KeyPath, ShardedTensor]:
        """The sharded tensors, by the keys that lead to them."""
        return self._index.tensors

    def read(self, path: KeyPath, box: Box, preferred: str = STATE_FILE) -> torch.Tensor:
        """Return a box of a tensor: as it is in the ``preferred`` file, else put together.

        Raises ValueError where the files do not have it, and what loading them raises.
        """
        tensor = self.tensors[path]
        if tensor.pieces.get(preferred) == box:
            return self._piece(preferred, path)
        # Replicas of a piece are read from one file. All is looked at before memory is taken.
        files = {piece: file for file, piece in tensor.pieces.items() if box.common_with(piece)}
        parts = {piece: self._piece(file, path) for piece, file in files.items()}
        if (
            sum(common.elements for piece in parts if (common := box.common_with(piece)))
            != box.elements
        ):
            raise ValueError(f"the files do not have all of {shown(path)}")
        self._made_bytes += box.elements * dtype_of(tensor.layout).itemsize
        if self._made_bytes > FREE_BYTES + MOST_TIED * self._stored_bytes:
            raise ValueError(f"the files spread their data over {self._made_bytes} bytes")
        found = torch.empty(box.shape, dtype=dtype_of(tensor.layout))
        for piece, part in parts.items():
            if (common := box.common_with(piece)) is not None:
                part_of(found, common, box).copy_(part_of(part, common, piece))
        return found

    def check(self, path: KeyPath) -> None:
        """Check that the files have every piece of a tensor. Raises as ``read`` does."""
        for file in self.tensors[path].pieces:
            self._piece(file, path)

    def _piece(self, file: str, path: KeyPath) -> torch.Tensor:
        if file not in self._loaded:
            content = self._load(file)
            self._loaded[file] = content if file == STATE_FILE else content[SHARDS]
        value: Any = self._loaded[file]
        for key in path:
            value = value[key]
        layout, box = self.tensors[path].layout, self.tensors[path].pieces[file]
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != box.shape:
            raise ValueError(f"{file} has no piece of {shown(path)} of the shape {box.shape}")
        # An expanded tensor would have more elements than the file has bytes, and one of the kind
        # meta has none.
        storage = value.untyped_storage()
        bytes_stored = 0 if value.is_meta else storage.nbytes()
        if value.dtype != dtype_of(layout) or bytes_stored < value.numel() * value.itemsize:
            raise ValueError(f"{file} has a piece of {shown(path)} that is not as {layout.dtype}")
        if storage._cdata not in self._storages:
            self._storages.add(storage._cdata)
            self._stored_bytes += bytes_stored
        return value


def dtype_of(layout: Layout) -> torch.dtype:
    """Return the type of a tensor. Raises ValueError where torch has none of this name."""
    dtype = getattr(torch, layout.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{layout.dtype!r} is no type of torch")
    return dtype


def part_of(tensor: torch.Tensor, box: Box, of: Box) -> torch.Tensor:
    """Return a box of the tensor that is itself the box ``of``."""
    pairs = zip(box.offset, of.offset, box.shape, strict=True)
    for dimension, (begin, origin, length) in enumerate(pairs):
        tensor = tensor.narrow(dimension, begin - origin, length)
    return tensor
