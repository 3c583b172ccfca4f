"""Moves and removes what a script has saved, with the seal that stands for it in the store.

Only what was seen being written by a trainer of the run is ever touched.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.adopt.files import common_folder
from orchestrator.adopt.unit_pattern import UnitPattern
from orchestrator.checkpoint.adopted import Adopted
from orchestrator.checkpoint.checkpoint import Checkpoint, read_checkpoint
from orchestrator.checkpoint.contents import CONTENT_FOLDER, AdoptedFiles
from orchestrator.errors import CheckpointInvalidError, UnreadableError
from orchestrator.system.durable import Disk, remove_tree
from orchestrator.system.real_trees import make_directories


@dataclass(frozen=True)
class ScriptFiles:
    """The ``Disposal`` of a run whose script saves for itself under names that match ``pattern``.

    A manifest may have been written by anybody. Nothing at a path that the pattern of this command
    does not name is used, moved or deleted. Checkpoints may be large and many, so nothing is read
    while retention keeps all of them.
    """

    pattern: UnitPattern
    verifies_all = False

    def locate(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """Return the checkpoint with the paths that the pattern names; None if it names none.

        The paths may be others than they were, where the project was moved.
        """
        contents = checkpoint.contents
        if not isinstance(contents, AdoptedFiles):
            return None
        paths = dict.fromkeys((contents.path_from_run, Path(contents.adopted.path)))
        located = [self.pattern.locate(contents.adopted, path) for path in paths if path]
        named = [adopted for adopted in located if adopted is not None]
        if not named:
            return None
        adopted = min(named, key=lambda adopted: not os.path.exists(adopted.path))
        if len(paths) == 1 and _describes(adopted) == _describes(contents.adopted):
            return checkpoint  # nothing has moved, and nothing has another name
        return replace(checkpoint, manifest=replace(checkpoint.manifest, adopted=adopted))

    def gather(self, path: Path, checkpoints: Iterable[Checkpoint], disk: Disk) -> Path | None:
        """Move what the seal in ``path`` stands for into that directory, if the run wrote it.

        Return where the files are now, if they had to stay on another disk. Raises OSError.
        """
        try:
            located = self.locate(read_checkpoint(path))
        except (CheckpointInvalidError, UnreadableError):
            return None
        adopted = None if located is None else located.manifest.adopted
        if adopted is None or adopted.kept or not adopted.written_here:
            return None
        if not _is_newest_seal(path, adopted, checkpoints):
            return None
        # Before the seal moves: without a seal the files would be taken for a new checkpoint.
        with contextlib.suppress(FileNotFoundError):
            paths, run = saved_paths(adopted), path.parents[1]
            moved_to = move_out_of_sight(paths, path, disk, run, self.pattern)[0]
            return None if moved_to.is_relative_to(path) else moved_to
        return None

    def may_delete(self, checkpoint: Checkpoint) -> bool:
        """Return whether the store holds a copy, or the run wrote the files as they are now."""
        located = self.locate(checkpoint)
        if located is None or not isinstance(contents := located.contents, AdoptedFiles):
            return False
        return contents.adopted.kept or self._is_unchanged_work(contents.adopted)

    def _takes_files_along(self, adopted: Adopted) -> bool:
        """Return whether the script's own files go with the seal.

        Beside a copy they do so only where there are other paths: otherwise the files would be
        taken for a new checkpoint.
        """
        if not adopted.kept:
            return True
        return not self.pattern.is_one_path and self._is_unchanged_work(adopted)

    def _is_unchanged_work(self, adopted: Adopted) -> bool:
        """Return whether the run wrote the files, and nothing has changed them since the seal."""
        files = self.pattern.look_at(saved_paths(adopted))
        is_same = files is not None and files.modified_ns == adopted.modified_ns
        return adopted.written_here and is_same

    def remove(self, checkpoint: Checkpoint, trash: Path, disk: Disk) -> None:
        """Remove the seal in ``trash``, and the script's files unless it holds a copy of them.

        Raises OSError; the scanner finds the files that are left, as any that the script has saved.
        """
        located, run = self.locate(checkpoint), trash.parents[1]
        contents = None if located is None else located.contents
        try:
            if isinstance(contents, AdoptedFiles) and self._takes_files_along(contents.adopted):
                beside_copy, paths = trash / CONTENT_FOLDER, saved_paths(contents.adopted)
                for moved in move_out_of_sight(paths, beside_copy, disk, run, self.pattern):
                    is_beside_copy = moved.is_relative_to(beside_copy)
                    below = run if is_beside_copy else self.pattern.base_of(moved)
                    _remove(moved, disk, below)
        finally:
            remove_tree(trash, below=run)


def _describes(adopted: Adopted) -> tuple[str, list[tuple[str, str]]]:
    return adopted.path, list((adopted.members or {}).items())


def saved_paths(adopted: Adopted) -> tuple[Path, ...]:
    """Return the paths of what the script wrote together."""
    return tuple(adopted.paths_from(Path(adopted.path)).values())


def move_out_of_sight(
    paths: Sequence[Path], directory: Path, disk: Disk, run: Path, pattern: UnitPattern
) -> list[Path]:
    """Move a save of a script below ``directory`` and return the new path of each part of it.

    ``directory`` is in the run directory ``run``, and behind no link there. Nothing is moved from
    behind a link below the base of the pattern.

    On another disk a part gets a hidden name beside its old one instead. Raises
    FileNotFoundError if no part is there, and OSError.
    """
    root, token = common_folder(paths), secrets.token_hex(4)
    there = [path for path in paths if os.path.lexists(path)] or paths[:1]
    return [
        _move(
            path,
            directory / CONTENT_FOLDER / path.relative_to(root),
            token,
            disk,
            run,
            pattern.base_of(path),
        )
        for path in there
    ]


def _move(path: Path, target: Path, token: str, disk: Disk, run: Path, base: Path) -> Path:
    try:
        make_directories(target.parent, run)
        disk.rename(path, target, below=run, source_below=base)
        disk.sync_directory(target.parent)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # A copy to another disk would take long, and its room.
        with contextlib.suppress(OSError):
            target.parent.rmdir()
        target = path.with_name(f".set-aside-{token}-{path.name}")
        disk.rename(path, target, below=base)
    disk.sync_directory(path.parent)
    return target


def _is_newest_seal(path: Path, adopted: Adopted, checkpoints: Iterable[Checkpoint]) -> bool:
    """Return whether the directory ``path`` is the seal of what the script's path holds now."""
    seals = [
        checkpoint
        for checkpoint in checkpoints
        if checkpoint.manifest.adopted and checkpoint.manifest.adopted.path == adopted.path
    ]
    return bool(seals) and seals[-1].path == path


def _remove(path: Path, disk: Disk, below: Path) -> None:
    if os.path.isdir(path):
        remove_tree(path, below=below)
    else:
        disk.remove(path, below=below)
