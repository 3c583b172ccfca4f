"""Boxes: how a mesh of ranks cuts a tensor, and whether pieces are all of it."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoint.boxes import Box, Cut, box_of, tile

MESHES = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)


def boxes_of(
    size: tuple[int, ...], mesh: tuple[int, ...], cuts: list[Cut | None]
) -> list[Box | None]:
    return [box_of(size, mesh, c, cuts) for c in product(*map(range, mesh))]


def elements_of(box: Box) -> set[tuple[int, ...]]:
    pairs = zip(box.offset, box.shape, strict=True)
    return set(product(*(range(begin, begin + length) for begin, length in pairs)))


@given(SIZES, MESHES, st.data())
def test_pieces_of_a_mesh_are_all_of_the_tensor(
    size: tuple[int, ...], mesh: tuple[int, ...], data: st.DataObject
) -> None:
    """However a mesh cuts a tensor, each element is in a piece, and pieces are equal or apart."""
    dimension = st.integers(0, len(size) - 1).map(Cut)
    cuts = [data.draw(st.none() | dimension) for _ in mesh]
    boxes = [box for box in boxes_of(size, mesh, cuts) if box is not None]
    assert len(boxes) == math.prod(mesh)
    assert tile(boxes, size)
    distinct = {box for box in boxes if box.elements}
    found = [element for box in distinct for element in elements_of(box)]
    assert sorted(found) == sorted(elements_of(Box.whole(size)))


@given(st.integers(0, 20), st.integers(1, 4), st.integers(1, 4))
def test_strided_cut_is_made_after_the_one_that_it_names(rows: int, outer: int, inner: int) -> None:
    """FSDP beside tensor parallel: a rank has a chunk of the chunk of its tensor parallel rank."""
    cuts: list[Cut | None] = [Cut(0, inner) if inner > 1 else Cut(0), Cut(0)]
    for first, second in product(range(outer), range(inner)):
        box = box_of((rows,), (outer, inner), (first, second), cuts)
        whole = box_of((rows,), (inner,), (second,), [Cut(0)])
        assert box is not None
        assert whole is not None
        within = box_of(whole.shape, (outer,), (first,), [Cut(0)])
        assert within is not None
        if inner > 1:
            assert box == Box((whole.offset[0] + within.offset[0],), within.shape)
    assert tile([b for b in boxes_of((rows,), (outer, inner), cuts) if b], (rows,))


def test_piece_that_is_no_box_is_told() -> None:
    """Every second row is no box, and nothing says that it is one."""
    assert boxes_of((8,), (2,), [Cut(0, 2)]) == [None, None]


@pytest.mark.parametrize(
    "boxes",
    [
        [Box((0, 0), (2, 4))],
        [Box((0, 0), (2, 4)), Box((3, 0), (1, 4))],
        [Box((0, 0), (3, 4)), Box((2, 0), (2, 4))],
        [Box((0, 0), (2, 4)), Box((2, 0), (2, 5))],
        [Box((0, 0), (2, 2)), Box((2, 2), (2, 2)), Box((0, 2), (2, 2))],
        [Box((0,), (4,))],
    ],
    ids=["half", "gap", "overlap", "outside", "corner", "dimensions"],
)
def test_pieces_with_a_gap_or_an_overlap_are_not_all_of_it(boxes: list[Box]) -> None:
    """What a hostile index claims is refused."""
    assert not tile(boxes, (4, 4))


@given(SIZES, st.data())
def test_common_part_has_the_elements_of_both(size: tuple[int, ...], data: st.DataObject) -> None:
    """What two boxes have in common are exactly the elements that are in both."""

    def draw() -> Box:
        begins = [data.draw(st.integers(0, length)) for length in size]
        pairs = zip(begins, size, strict=True)
        lengths = [data.draw(st.integers(0, limit - begin)) for begin, limit in pairs]
        return Box(tuple(begins), tuple(lengths))

    one, other = draw(), draw()
    common = one.common_with(other)
    expected = elements_of(one) & elements_of(other)
    assert (set() if common is None else elements_of(common)) == expected
