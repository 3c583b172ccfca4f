"""The ``torch.save`` files of a checkpoint, or the images of a snapshot, and their loading."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.contents import STATE_FILE, file_of_rank
from orchestrator.checkpoint.shards import MAXIMUM_SHARDS_BYTES, SHARDS_FILE, ShardIndex
from orchestrator.snapshot.slots import Image, Snapshot
from orchestrator.system.regular_files import read_regular


@dataclass(frozen=True)
class StoredFiles:
    """What the ranks have saved together; each file is loaded once.

    Attributes:
        paths: Where each file is, by its name.
        read_index: Returns the index of sharded tensors; None where nothing is sharded. It raises
            ValueError and OSError.
    """

    paths: Mapping[str, Path]
    read_index: Callable[[], ShardIndex | None]
    _loaded: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Return the files of a session's checkpoint."""
        paths = {name: checkpoint.path / name for name in checkpoint.manifest.files}
        return cls(paths, partial(_index_in, checkpoint))

    @classmethod
    def of_snapshot(cls, snapshot: Snapshot, rank: int, common: Image | None) -> Self:
        """Return the image of a rank, and as state.pt that of rank 0, which is ``common``."""
        file, own = file_of_rank(rank), _image(snapshot.descriptor, snapshot.image_bytes)
        main = own if common is None else _image(common.descriptor, common.image_bytes)
        return cls({STATE_FILE: main, file: own}, partial(_index_of, snapshot, file))

    def load(self, name: str) -> dict[str, Any]:
        """Return the content of a file, whose tensors are mapped. Raises as ``load`` does."""
        if name not in self._loaded:
            self._loaded[name] = load(self.paths[name], mmap=True)
        return self._loaded[name]


def _index_in(checkpoint: Checkpoint) -> ShardIndex | None:
    files = checkpoint.manifest.files
    if SHARDS_FILE not in files:
        return None
    text = read_regular(checkpoint.path / SHARDS_FILE, MAXIMUM_SHARDS_BYTES, real_parents=1)
    names = {file_of_rank(rank) for rank in range(checkpoint.manifest.world_size)}
    index = ShardIndex.from_json(text, names & files.keys())
    index.check_complete()
    return index


def _index_of(snapshot: Snapshot, file: str) -> ShardIndex | None:
    text = snapshot.index
    return None if text is None else ShardIndex.from_json(text.read(), {file})


def _image(descriptor: int, image_bytes: int) -> Path:
    # torch expects the end of the archive at the end of the mapped file.
    os.ftruncate(descriptor, image_bytes)
    return Path(f"/dev/fd/{descriptor}")


def load(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Return the dict in a ``torch.save`` file, read by the safe load.

    Raises TypeError if the file holds no dict, and every kind of exception that torch raises.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except RuntimeError:
        if not mmap:
            raise
        return load(path)  # some filesystems cannot map files
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__}, not a dict")
    return content


def first_line(error: Exception) -> str:
    """Return the class and the first line of an exception; torch's messages have many lines."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
