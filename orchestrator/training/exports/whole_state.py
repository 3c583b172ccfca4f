"""The state of a checkpoint with whole tensors, of which no more than one is in memory at a time.

In its tree a stand-in takes the place of each sharded tensor: a tensor of the whole size, whose
memory nobody touches, so that the system gives none. Writers replace it when its turn comes.
"""

from collections.abc import Mapping
from typing import Any

import torch

from orchestrator.checkpoint.boxes import Box
from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.contents import STATE_FILE
from orchestrator.checkpoint.shards import KeyPath
from orchestrator.errors import ConfigError
from orchestrator.training.formats.classic import memory_for, refuse_hostile
from orchestrator.training.state.dtensors import with_tensors
from orchestrator.training.state.progress import SUFFIX
from orchestrator.training.state.shard_reader import ShardReader, dtype_of
from orchestrator.training.state.stored_files import StoredFiles, first_line, load


class WholeState:
    """What a checkpoint holds, of all ranks together.

    Attributes:
        content: The content of state.pt, with stand-ins.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Load the files, whose tensors are mapped, and look at every piece.

        Raises ConfigError where they cannot be read, or the index does not fit them.
        """
        self._files = StoredFiles.of_checkpoint(checkpoint)
        self._loaded: dict[str, dict[str, Any]] = {}
        # By the address of a stand-in; tied tensors have one stand-in.
        self._paths: dict[int, KeyPath] = {}
        self._known: dict[Any, torch.Tensor] = {}
        try:
            index = self._files.read_index()
            self._reader = None if index is None else ShardReader(index, self._load)
            self.content: dict[str, Any] = {
                key: with_tensors(value, (key,), self._stand_in) if key.endswith(SUFFIX) else value
                for key, value in self._load(STATE_FILE).items()
            }
        except Exception as error:  # torch raises many classes
            raise ConfigError(
                f"cannot read {checkpoint.path}: {first_line(error)}; the files are intact: read "
                "them with the same packages as the run that made them"
            ) from error

    def _load(self, name: str) -> Mapping[str, Any]:
        if name not in self._loaded:
            with memory_for(self._files.paths[name]):
                content = load(self._files.paths[name], mmap=True)
                refuse_hostile(content)
            self._loaded[name] = content
        return self._loaded[name]

    def _stand_in(self, tensor: torch.Tensor, path: KeyPath) -> torch.Tensor:
        if self._reader is None or path not in self._reader.tensors:
            return tensor
        self._reader.check(path)
        layout = self._reader.tensors[path].layout
        tie = (tensor.data_ptr(), layout.dtype, layout.size) if tensor.numel() else path
        if tie not in self._known:
            self._known[tie] = torch.empty(layout.size, dtype=dtype_of(layout))
            self._paths[self._known[tie].data_ptr()] = path
        return self._known[tie]

    def filled(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor that this one stands for, put together now; others as they are."""
        path = self._paths.get(tensor.data_ptr()) if tensor.numel() else None
        if path is None or self._reader is None:
            return tensor
        return self._reader.read(path, Box.whole(self._reader.tensors[path].layout.size))

    def state_of(self, name: str) -> Any:
        """Return the state of one object. Raises ConfigError where there is none of this name."""
        if name + SUFFIX not in self.content:
            names = [key.removesuffix(SUFFIX) for key in self.content if key.endswith(SUFFIX)]
            raise ConfigError(
                f"cannot export {name}: the checkpoint contains only "
                f"{', '.join(names) or 'counters'}; choose one of these with --name"
            )
        return self.content[name + SUFFIX]
