"""Writes a checkpoint in the form of torch.distributed.checkpoint, one tensor at a time."""

import contextlib
import os
import secrets
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.state_dict_saver import save

from orchestrator.errors import ConfigError
from orchestrator.system.durable import Disk, remove_tree
from orchestrator.training.exports.whole_state import WholeState


def write_dcp(whole: WholeState, content: dict[str, Any], target: Path) -> None:
    """Write ``content``, a part of ``whole``, into a new directory, which appears whole.

    ``torch.distributed.checkpoint.load`` reads it, in any number of processes. Raises ConfigError
    and OSError.
    """
    _refuse_existing(target)
    with _new_directory(target, Disk()) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        writer = FileSystemWriter(temporary, thread_count=1, sync_files=True)
        save(content, storage_writer=writer, planner=_Planner(whole), no_dist=True)


@contextlib.contextmanager
def _new_directory(target: Path, disk: Disk) -> Iterator[Path]:
    """Yield a new directory, which becomes ``target`` after the block, or is removed."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        disk.make_directory(temporary)
        yield temporary
        disk.sync_directory(temporary)
        _refuse_existing(target)
        disk.rename(temporary, target)
    except BaseException:
        remove_tree(temporary, below=target.parent)
        raise
    disk.sync_directory(target.parent)


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise ConfigError(
            f"cannot write {target}: it exists, and this form is a directory of its own; choose "
            "another name, or move it away"
        )


class _Planner(DefaultSavePlanner):
    """Puts each tensor together when it is written."""

    def __init__(self, whole: WholeState) -> None:
        super().__init__()
        self._whole = whole

    def lookup_object(self, index: MetadataIndex) -> Any:
        found = super().lookup_object(index)
        return self._whole.filled(found) if isinstance(found, torch.Tensor) else found
