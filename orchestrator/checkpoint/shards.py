"""shards.json: which piece of a sharded tensor is in which file of a checkpoint.

Each rank writes an index of what it holds, and the writer of the checkpoint joins them. The format
is docs/reference/checkpoint-format.md. An index is data from the disk: nothing in it is used before
it has been checked.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from orchestrator.checkpoint.boxes import Box, Sizes, tile
from orchestrator.system.json_input import parse_object

SHARDS_FILE = "shards.json"
SHARDS_VERSION = 1
# Of one rank, in the memory of its snapshots: some 300,000 tensors.
MAXIMUM_INDEX_BYTES = 1 << 26
MAXIMUM_SHARDS_BYTES = 1 << 28
MOST_DIMENSIONS = 64
# More elements than any file has bytes.
MOST_ELEMENTS = 1 << 62
LONGEST_TEXT = 4096
MOST_KEYS = 32

KeyPath = tuple[str | int, ...]
"""The keys that lead to a tensor, from the top of the file on."""


@dataclass(frozen=True)
class Layout:
    """What is the same of a tensor on all ranks.

    Attributes:
        dtype: The name of its type in torch.
        size: The size of the whole tensor.
        mesh: The shape of the mesh of ranks over which it is cut.
        names: The names of the dimensions of the mesh; empty where they have none.
        placements: What each dimension of the mesh does with it, as torch writes it.
    """

    dtype: str
    size: Sizes
    mesh: Sizes
    names: tuple[str, ...]
    placements: tuple[str, ...]


@dataclass(frozen=True)
class ShardedTensor:
    """A tensor that is in pieces: its layout, and which box of it each file has."""

    layout: Layout
    pieces: Mapping[str, Box]


@dataclass(frozen=True)
class ShardIndex:
    """The sharded tensors of a checkpoint, by the keys that lead to them."""

    tensors: Mapping[KeyPath, ShardedTensor]

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """Return the index of all ranks. Raises ValueError where they do not fit together."""
        tensors: dict[KeyPath, ShardedTensor] = {}
        for part in parts:
            for path, tensor in part.tensors.items():
                known = tensors.get(path, tensor)
                if known.layout != tensor.layout:
                    raise ValueError(f"the ranks have cut {shown(path)} in different ways")
                tensors[path] = ShardedTensor(tensor.layout, {**known.pieces, **tensor.pieces})
        return cls(tensors)

    def to_json(self) -> bytes:
        """Return the text of the file."""
        tensors = [
            {
                "path": path,
                "dtype": tensor.layout.dtype,
                "size": tensor.layout.size,
                "mesh": {"shape": tensor.layout.mesh, "names": tensor.layout.names},
                "placements": tensor.layout.placements,
                "pieces": [
                    {"file": file, "offset": box.offset, "shape": box.shape}
                    for file, box in tensor.pieces.items()
                ],
            }
            for path, tensor in self.tensors.items()
        ]
        content = {"format_version": SHARDS_VERSION, "tensors": tensors}
        return json.dumps(content, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes, files: Collection[str]) -> Self:
        """Parse and check an index whose pieces are in these files. Raises ValueError."""
        try:
            content = parse_object(text)
            if content.get("format_version") != SHARDS_VERSION:
                raise ValueError(f"it has format version {content.get('format_version')!r}")
            tensors: dict[KeyPath, ShardedTensor] = {}
            for entry in _list(content["tensors"]):
                path, tensor = _tensor(entry, files)
                if path in tensors:
                    raise ValueError(f"it has {shown(path)} twice")
                tensors[path] = tensor
            return cls(tensors)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{SHARDS_FILE} is malformed ({error!r})") from None
        except ValueError as error:
            raise ValueError(f"{SHARDS_FILE} cannot be used: {error}") from None

    def check_complete(self) -> None:
        """Check that the pieces of every tensor are all of it. Raises ValueError."""
        for path, tensor in self.tensors.items():
            if not tile(set(tensor.pieces.values()), tensor.layout.size):
                raise ValueError(
                    f"{SHARDS_FILE} cannot be used: the pieces of {shown(path)} are not all of it"
                )


def shown(path: KeyPath) -> str:
    """Return the name of a tensor for people."""
    return ".".join(map(str, path))


def _tensor(entry: Any, files: Collection[str]) -> tuple[KeyPath, ShardedTensor]:
    path = tuple(_key(key) for key in _list(entry["path"]))
    if not 0 < len(path) <= MOST_KEYS:
        raise ValueError("a tensor in it has no path, or a very long one")
    size = _sizes(entry["size"])
    if math.prod(size) > MOST_ELEMENTS:
        raise ValueError(f"{shown(path)} has too many elements")
    layout = Layout(
        _text(entry["dtype"]),
        size,
        _sizes(entry["mesh"]["shape"]),
        tuple(map(_text, _list(entry["mesh"]["names"]))),
        tuple(map(_text, _list(entry["placements"]))),
    )
    if len(layout.placements) != len(layout.mesh):
        raise ValueError(f"{shown(path)} has not one placement for each dimension of its mesh")
    pieces: dict[str, Box] = {}
    for piece in _list(entry["pieces"]):
        file, box = piece["file"], Box(_sizes(piece["offset"]), _sizes(piece["shape"]))
        if file not in files or file in pieces:
            raise ValueError(f"{shown(path)} has a piece in {file!r:.{LONGEST_TEXT}}")
        if not box.is_within(size):
            raise ValueError(f"a piece of {shown(path)} is outside of it")
        pieces[file] = box
    return path, ShardedTensor(layout, pieces)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a {type(value).__name__} is where a list must be")
    return value


def _key(value: Any) -> str | int:
    return _count(value) if isinstance(value, int) else _text(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise TypeError("no text, or a very long one, is where a name must be")
    return value


def _sizes(value: Any) -> Sizes:
    sizes = tuple(map(_count, _list(value)))
    if len(sizes) > MOST_DIMENSIONS:
        raise ValueError("a tensor or a mesh in it has too many dimensions")
    return sizes


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MOST_ELEMENTS:
        raise TypeError(f"{str(value)[:20]} is where a count must be")
    return value
