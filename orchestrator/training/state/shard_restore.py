"""Gives each rank its pieces of the sharded tensors that a checkpoint holds, however it was cut."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from orchestrator.checkpoint.boxes import Box
from orchestrator.checkpoint.shards import KeyPath, Layout, shown
from orchestrator.training.state.compatibility import mismatch
from orchestrator.training.state.dtensors import dtype_name, with_tensors
from orchestrator.training.state.progress import SUFFIX
from orchestrator.training.state.shard_reader import ShardReader, part_of
from orchestrator.training.state.sharding import Sharding


@dataclass
class ShardRestore:
    """Replaces the tensors in the content of a file with what this rank holds of them.

    Attributes:
        reader: Reads the files; None where no tensor in them is sharded.
        sharding: Where this process's DTensors are; None where it has none.
        file: The file of this rank, whose pieces are taken as they are where they fit.
        recut: The names of the objects of which this rank holds other pieces than the file has.
        fresh: The tensors that were made here, and belong to no file.
    """

    reader: ShardReader | None
    sharding: Sharding | None
    file: str
    recut: set[str] = field(default_factory=set)
    fresh: list[torch.Tensor] = field(default_factory=list)
    _differences: list[str] = field(default_factory=list)

    def apply(self, content: dict[str, Any], source: Path) -> dict[str, Any]:
        """Return the content of ``source`` with this rank's pieces.

        Raises MismatchError where the objects of this script cannot hold a tensor, and what reading
        the files raises.
        """
        if self.reader is None and self.sharding is None:
            return content
        restored = {
            key: with_tensors(value, (key,), self._restore) if key.endswith(SUFFIX) else value
            for key, value in content.items()
        }
        if self._differences:
            raise mismatch(source, self._differences)
        return restored

    def _restore(self, tensor: torch.Tensor, path: KeyPath) -> torch.Tensor:
        saved = None if self.reader is None else self.reader.tensors.get(path)
        whole = Layout(dtype_name(tensor.dtype), tuple(tensor.shape), (), (), ())
        layout = whole if saved is None else saved.layout
        place = None if self.sharding is None else self.sharding.expect(path, layout)
        if place is not None and place.layout.size != layout.size:
            self._differences.append(
                f"{shown(path)} is {list(layout.size)} in the file, {list(place.layout.size)} here"
            )
            return tensor
        if saved is not None and place is None and self._belongs_to_piece(path):
            self._differences.append(
                f"{shown(path)} has not the size of its parameter, and was cut over "
                f"{list(layout.mesh)} ranks: other ranks cannot tell which part is theirs"
            )
            return tensor
        box = Box.whole(layout.size) if place is None else place.box
        if saved is None or self.reader is None:
            if box == Box.whole(layout.size):
                return tensor
            return self._made(part_of(tensor, box, Box.whole(layout.size)).clone(), path)
        read = self.reader.read(path, box, self.file)
        return read if saved.pieces.get(self.file) == box else self._made(read, path)

    def _belongs_to_piece(self, path: KeyPath) -> bool:
        return self.sharding is not None and self.sharding.belongs_to_piece(path)

    def _made(self, tensor: torch.Tensor, path: KeyPath) -> torch.Tensor:
        self.recut.add(str(path[0]))
        self.fresh.append(tensor)
        return tensor

    def doubts(self) -> list[str]:
        """Return why the run may differ from one that was not interrupted."""
        names = ", ".join(sorted(key.removesuffix(SUFFIX) for key in self.recut))
        return [f"each rank holds other pieces than when it was saved ({names})"] if names else []
