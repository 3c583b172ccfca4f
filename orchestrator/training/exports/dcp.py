"""Writes a checkpoint in the form of torch.distributed.checkpoint, one tensor at a time."""

import contextlib
import errno
import os
import secrets
import stat
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
from orchestrator.system.durable import Disk, folder_of, remove_tree
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
    """Yield a new directory, which becomes ``target`` after the block, or is removed.

    torch opens files in it by their paths. Who may write to the directory of ``target`` could put
    a link in the place of the new one. So it is named by its descriptor, and only this user can
    enter it.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        disk.make_directory(temporary)
        with folder_of(temporary / "any", target.parent) as folder:
            facts = os.fstat(folder)
            os.fchmod(folder, 0o700)
            if facts.st_uid != os.geteuid() or os.listdir(folder):
                raise _replaced(temporary)
            by_descriptor = Path(f"/proc/self/fd/{folder}")
            yield by_descriptor if os.path.isdir(by_descriptor) else temporary
            os.fchmod(folder, stat.S_IMODE(facts.st_mode))
            disk.sync_directory(temporary)
            _refuse_existing(target)
            if not os.path.samestat(os.lstat(temporary), facts):
                raise _replaced(temporary)
            disk.rename(temporary, target)
    except BaseException:
        remove_tree(temporary, below=target.parent)
        raise
    disk.sync_directory(target.parent)


def _replaced(directory: Path) -> OSError:
    return OSError(errno.ESTALE, "another directory has taken its place", str(directory))


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
