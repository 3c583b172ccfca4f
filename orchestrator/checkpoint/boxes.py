"""Boxes: the pieces of tensors that ranks hold, as offsets and shapes within the whole tensor."""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

Sizes = tuple[int, ...]
"""A number for each dimension of a tensor."""


class Box(NamedTuple):
    """A piece of a tensor: where it begins, and how long it is in each dimension."""

    offset: Sizes
    shape: Sizes

    @classmethod
    def whole(cls, size: Sizes) -> "Box":
        """Return the box that is all of a tensor of this size."""
        return cls((0,) * len(size), size)

    @property
    def elements(self) -> int:
        """The number of elements in it."""
        return math.prod(self.shape)

    def is_within(self, size: Sizes) -> bool:
        """Return whether it lies within a tensor of this size."""
        if not len(self.offset) == len(self.shape) == len(size):
            return False
        dimensions = zip(self.offset, self.shape, size, strict=True)
        return all(0 <= begin <= begin + length <= limit for begin, length, limit in dimensions)

    def common_with(self, other: "Box") -> "Box | None":
        """Return what both boxes have in common; None if that is nothing."""
        offset = tuple(map(max, self.offset, other.offset))
        ends = [min(a, b) for a, b in zip(_ends(self), _ends(other), strict=True)]
        shape = tuple(end - begin for begin, end in zip(offset, ends, strict=True))
        return Box(offset, shape) if all(length > 0 for length in shape) else None


def _ends(box: Box) -> list[int]:
    return [begin + length for begin, length in zip(box.offset, box.shape, strict=True)]


def tile(boxes: Collection[Box], size: Sizes) -> bool:
    """Return whether the boxes, each counted once, cover a tensor without gap and overlap.

    They must be cut as shards are: each dimension into intervals, and all combinations of these.
    """
    distinct = {box for box in boxes if box.elements}
    if not math.prod(size):
        return True
    if not all(box.is_within(size) for box in distinct):
        return False
    combinations = 1
    for dimension, limit in enumerate(size):
        intervals = sorted({(box.offset[dimension], box.shape[dimension]) for box in distinct})
        reached = 0
        for begin, length in intervals:
            if begin != reached:
                return False
            reached += length
        if reached != limit:
            return False
        combinations *= len(intervals)
    return len(distinct) == combinations


class Cut(NamedTuple):
    """How one dimension of a mesh cuts a tensor: into chunks along a dimension of it.

    With ``split_factor`` the tensor has been cut along that dimension before, into this number of
    chunks, each of which is cut again.
    """

    dimension: int
    split_factor: int = 1


def box_of(
    size: Sizes, mesh: Sizes, coordinate: Sequence[int], cuts: Sequence[Cut | None]
) -> Box | None:
    """Return the box of the rank at a coordinate of a mesh; None where it holds no single box.

    ``cuts`` has one for each dimension of the mesh, None where the tensor is the same along it.
    """
    offset, shape = [0] * len(size), list(size)
    for index in _order(mesh, cuts):
        cut = cuts[index]
        if cut is None:
            continue
        if cut.split_factor > 1 and cut.split_factor != _later_chunks(index, mesh, cuts):
            return None
        dimension = cut.dimension
        # As torch.chunk does: the chunks are equally long, but the last ones.
        chunk = -(-shape[dimension] // mesh[index])
        begin = min(chunk * coordinate[index], shape[dimension])
        offset[dimension] += begin
        shape[dimension] = min(chunk, shape[dimension] - begin)
    return Box(tuple(offset), tuple(shape))


def _order(mesh: Sizes, cuts: Sequence[Cut | None]) -> list[int]:
    """Return the dimensions of the mesh in the order in which they have cut the tensor."""
    strided = [i for i, cut in enumerate(cuts) if cut is not None and cut.split_factor > 1]
    return [i for i in range(len(mesh)) if i not in strided] + strided[::-1]


def _later_chunks(index: int, mesh: Sizes, cuts: Sequence[Cut | None]) -> int:
    """Return into how many chunks the later dimensions of the mesh cut the same dimension."""
    cut = cuts[index]
    later = range(index + 1, len(mesh))
    same = [mesh[i] for i in later if cut is not None and _dimension(cuts[i]) == cut.dimension]
    return math.prod(same)


def _dimension(cut: Cut | None) -> int | None:
    return None if cut is None else cut.dimension
