"""shards.json: what is written is read back, and what a stranger wrote is checked."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoint.boxes import Box
from orchestrator.checkpoint.shards import KeyPath, Layout, ShardedTensor, ShardIndex

FILES = ("state.pt", "rank-00001.pt")
LAYOUT = Layout("float32", (7, 5), (2,), ("dp",), ("S(0)",))
PIECES = {"state.pt": Box((0, 0), (4, 5)), "rank-00001.pt": Box((4, 0), (3, 5))}
PATH: KeyPath = ("optimizer_state_dict", "state", 0, "exp_avg")


def index_of(**pieces: Box) -> ShardIndex:
    return ShardIndex({PATH: ShardedTensor(LAYOUT, pieces)})


def test_indices_of_ranks_become_one_that_is_read_back() -> None:
    """Each rank knows its own piece; together they are the whole tensor, in JSON and back."""
    parts = [index_of(**{name: box}) for name, box in PIECES.items()]
    whole = ShardIndex.joined(parts)
    assert whole == index_of(**PIECES)
    whole.check_complete()
    assert ShardIndex.from_json(whole.to_json(), FILES) == whole
    with pytest.raises(ValueError, match=r"optimizer_state_dict\.state\.0\.exp_avg are not all"):
        parts[0].check_complete()


def test_ranks_that_cut_in_different_ways_do_not_fit() -> None:
    """Two ranks whose meshes differ would leave a checkpoint that nobody can put together."""
    other = Layout("float32", (7, 5), (4,), ("dp",), ("S(0)",))
    parts = [index_of(**PIECES), ShardIndex({PATH: ShardedTensor(other, {})})]
    with pytest.raises(ValueError, match="in different ways"):
        ShardIndex.joined(parts)


def text_of(**changes: Any) -> bytes:
    content = json.loads(index_of(**PIECES).to_json())
    content["tensors"][0].update(changes)
    return json.dumps(content).encode()


def piece(**changes: Any) -> dict[str, Any]:
    return {"file": "state.pt", "offset": [0, 0], "shape": [7, 5], **changes}


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b'{"format_version": 2, "tensors": []}',
        b'{"format_version": 1}',
        b'{"format_version": 1, "tensors": {"path": 1}}',
        text_of(path=[]),
        text_of(path=[True]),
        text_of(path=[-1]),
        text_of(path=["a"] * 33),
        text_of(path=["a" * 5000]),
        text_of(size=[7, -5]),
        text_of(size=[1 << 62, 4]),
        text_of(size=[1] * 65),
        text_of(size=[7.0, 5]),
        text_of(placements=[]),
        text_of(mesh=[2]),
        text_of(dtype=7),
        text_of(pieces=[piece(file="../state.pt")]),
        text_of(pieces=[piece(file=["state.pt"])]),
        text_of(pieces=[piece(file="manifest.json")]),
        text_of(pieces=[piece(), piece()]),
        text_of(pieces=[piece(offset=[1, 0])]),
        text_of(pieces=[piece(shape=[7])]),
        text_of(pieces=[piece(shape=["7", 5])]),
        text_of(pieces=[1]),
        b'{"format_version": 1, "tensors": [1]}',
    ],
)
def test_index_that_a_stranger_wrote_is_refused(text: bytes) -> None:
    """No file is outside of the checkpoint, no piece outside of its tensor; sizes have a bound."""
    with pytest.raises(ValueError, match=r"shards\.json"):
        ShardIndex.from_json(text, FILES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.sampled_from(["path", "dtype", "size", "mesh", "placements", "pieces"]), JSON)
def test_any_value_of_a_field_is_read_or_refused(field: str, value: Any) -> None:
    """Whatever a field holds, the answer is an index or a ValueError."""
    try:
        ShardIndex.from_json(text_of(**{field: value}), FILES)
    except ValueError as error:
        assert "shards.json" in str(error)
