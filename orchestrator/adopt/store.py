"""The store of a run whose script saves for itself: each checkpoint has a seal there.

A seal is a checkpoint's directory like any other, with a manifest that says where the files lie.
Of a path that the script overwrites with each save the seal holds a copy.
"""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from orchestrator import __version__
from orchestrator.adopt.files import Contents
from orchestrator.checkpoint.checkpoint import CONTENT_FOLDER, Checkpoint, read_checkpoint
from orchestrator.checkpoint.external_files import durable_record, place
from orchestrator.checkpoint.manifest import Adopted, FileRecord, Manifest, Reason
from orchestrator.checkpoint.retention import RetentionPolicy
from orchestrator.checkpoint.store import TRASH_PREFIX, WRITING_PREFIX, Store, signature_of
from orchestrator.checkpoint.verification import verify_files
from orchestrator.errors import CheckpointInvalidError, UnreadableError
from orchestrator.rundir.journal import utc_now

DOUBT = "saved by the script itself; only the script knows what it restores"
RESTORING_SUFFIX = ".orchestrator-restoring"


@dataclass(frozen=True)
class Sealing:
    """How contents become a checkpoint; ``step`` is None where the name tells none.

    ``keep``: have a copy. ``link``: the script replaces its files and does not write into them, so
    that a hard link is a copy.
    """

    contents: Contents
    step: int | None
    reason: Reason
    written_here: bool
    keep: bool
    link: bool = False


class _ChangedError(Exception):
    """The script goes on writing."""


class AdoptedStore(Store):
    """Seals, takes out of sight and deletes what the script has saved."""

    def seal(self, sealing: Sealing) -> Checkpoint | None:
        """Make a checkpoint of contents; None if they changed meanwhile. Raises OSError."""
        contents = sealing.contents
        temporary = self.run.checkpoints / f"{WRITING_PREFIX}{secrets.token_hex(8)}"
        self.disk.make_directory(temporary)
        try:
            root = contents.root
            if sealing.keep:
                root = temporary / CONTENT_FOLDER
                self._copy(contents.root, contents.modified_ns, root, link=sealing.link)
            files = {name: durable_record(root / name, self.disk) for name in contents.files}
            for directory in {root, root.parent, *((root / name).parent for name in files)}:
                self.disk.sync_directory(directory)
            sizes = {name: file.bytes for name, file in contents.files.items()}
            copied = {name: record.bytes for name, record in files.items()}
            # Two saves within one tick of the clock have the same time.
            if Contents.of(contents.path) != contents or copied != sizes:
                raise _ChangedError
            checkpoint = self._commit(temporary, self._manifest(sealing, files))
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, _ChangedError) or Contents.of(contents.path) != contents:
                return None
            raise
        # Every byte has just been read.
        if (signature := signature_of(checkpoint)) is not None:
            self._verified[checkpoint.name] = signature
        return checkpoint

    def _manifest(self, sealing: Sealing, files: dict[str, FileRecord]) -> Manifest:
        contents, step = sealing.contents, sealing.step
        if step is None:
            step = 1 + max((c.manifest.step for c in self.all()), default=0)
        return Manifest(
            run_id=self.run_id,
            step=step,
            epoch=0,
            reason=sealing.reason,
            metrics={},
            healthy=True,
            time=utc_now(),
            files=files,
            versions={"orchestrator": __version__},
            doubts=[DOUBT],
            adopted=Adopted(
                path=str(contents.path),
                is_directory=contents.is_directory,
                numbered=sealing.step is not None,
                written_here=sealing.written_here,
                kept=sealing.keep,
                modified_ns=contents.modified_ns,
            ),
        )

    def _copy(self, source: Path, modified_ns: dict[str, int], target: Path, *, link: bool) -> None:
        """Have files of these names and times in a new directory."""
        target.mkdir()
        for name, modified in modified_ns.items():
            place(source / name, target / name, self.disk, link=link)
            if (target / name).stat().st_nlink == 1:
                os.utime(target / name, ns=(modified, modified))

    def seals(self) -> dict[Path, Checkpoint]:
        """The newest checkpoint of each path."""
        return {Path(c.manifest.adopted.path): c for c in self.all() if c.manifest.adopted}

    def put_back(self, checkpoint: Checkpoint) -> None:
        """Have the kept version at the script's own path, where nothing is. Raises OSError."""
        adopted = checkpoint.manifest.adopted
        assert adopted is not None
        target = Path(adopted.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}{RESTORING_SUFFIX}")
        shutil.rmtree(temporary, ignore_errors=True)
        self._copy(checkpoint.content, adopted.modified_ns, temporary, link=False)
        if adopted.is_directory:
            self.disk.rename(temporary, target)
        else:
            self.disk.rename(temporary / target.name, target)
            self.disk.remove(temporary)
        self.disk.sync_directory(target.parent)

    def is_in_place(self, checkpoint: Checkpoint) -> bool:
        """Whether the script's own path holds this very version, every byte of it."""
        adopted = checkpoint.manifest.adopted
        assert adopted is not None
        contents = Contents.of(Path(adopted.path))
        if contents is None or contents.files.keys() != checkpoint.manifest.files.keys():
            return False
        try:
            verify_files(checkpoint, contents.root, to_load=True)
        except CheckpointInvalidError:
            return False
        return True

    def set_aside(self, path: Path, reason: str) -> Path:
        """Move what never was a checkpoint into quarantine; where it is now. Raises OSError."""
        directory = self._place_in_quarantine(f"partial-{path.name}")
        self.disk.make_directory(directory)
        try:
            where = self._take_away(path, directory)
        except OSError:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        self._leave_note(directory, path.name, _with_place(reason, where, directory))
        return where

    def quarantine(self, path: Path, reason: str) -> None:
        """The same as for any checkpoint; what the script has saved goes with its seal."""
        try:
            adopted = read_checkpoint(path).manifest.adopted
        except (CheckpointInvalidError, UnreadableError):
            adopted = None
        if adopted is not None and not adopted.kept and self._owns_files(path, adopted):
            # First: were only the seal gone, the files would be taken for a new checkpoint.
            with contextlib.suppress(FileNotFoundError):
                where = self._take_away(Path(adopted.path), path)
                reason = _with_place(reason, where, path)
        super().quarantine(path, reason)

    def _owns_files(self, path: Path, adopted: Adopted) -> bool:
        """Whether we saw them being written, and this is the seal of what they are now."""
        newest = self.seals().get(Path(adopted.path))
        return adopted.written_here and newest is not None and newest.path == path

    def _take_away(self, path: Path, directory: Path) -> Path:
        """Move out of the sight of whoever lists the names beside it; where it is now."""
        target = directory / CONTENT_FOLDER
        try:
            target.mkdir(exist_ok=True)
            self.disk.rename(path, target / path.name)
            self.disk.sync_directory(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # Copying what nobody wants to another disk would take long, and its room.
            target.rmdir()
            target = path.parent
            hidden = f".set-aside-{secrets.token_hex(4)}-{path.name}"
            self.disk.rename(path, target / hidden)
            self.disk.sync_directory(target)
            return target / hidden
        self.disk.sync_directory(path.parent)
        return target / path.name

    def withdraw(self, checkpoint: Checkpoint) -> None:
        """Remove the seal of what the script has deleted or written anew. Raises OSError."""
        trash = self.run.checkpoints / f"{TRASH_PREFIX}{checkpoint.name}-{secrets.token_hex(4)}"
        self.disk.rename(checkpoint.path, trash)
        self.disk.sync_directory(self.run.checkpoints)
        shutil.rmtree(trash, ignore_errors=True)

    def withdraw_older(self, checkpoint: Checkpoint) -> None:
        """The same for all earlier seals of its path, whose files are no more."""
        adopted = checkpoint.manifest.adopted
        for older in self.all():
            other = older.manifest.adopted
            same = adopted and other and not other.kept and other.path == adopted.path
            if same and older.name != checkpoint.name:
                with contextlib.suppress(OSError):  # being deleted, perhaps
                    self.withdraw(older)

    def apply_retention(
        self,
        policy: RetentionPolicy,
        in_use: Collection[str] = (),
        on_quarantine: Callable[[CheckpointInvalidError], None] = lambda error: None,
    ) -> list[Checkpoint]:
        """The same as for any store; where all may stay, none is read for it."""
        if len(self.directories()) <= policy.keep:
            return []
        return super().apply_retention(policy, in_use, on_quarantine)

    def _delete(self, checkpoint: Checkpoint) -> bool:
        adopted = checkpoint.manifest.adopted
        if adopted is None:
            return super()._delete(checkpoint)
        if not adopted.kept and not _is_ours(adopted):
            return False
        try:
            trash = self._to_trash(checkpoint)
            if trash is None:
                return False
            try:
                if not adopted.kept:
                    _remove(self._take_away(Path(adopted.path), trash))
            finally:
                shutil.rmtree(trash, ignore_errors=True)
        except OSError:
            # The files that are left are found again, as any that the script has saved.
            return False
        self._verified.pop(checkpoint.name, None)
        return True


def _is_ours(adopted: Adopted) -> bool:
    """Whether it is what we saw being written, and nothing else."""
    contents = Contents.of(Path(adopted.path))
    return (
        adopted.written_here
        and contents is not None
        and contents.modified_ns == adopted.modified_ns
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _with_place(reason: str, where: Path, directory: Path) -> str:
    """The reason, and where the files are if not in the directory itself."""
    return reason if where.is_relative_to(directory) else f"{reason}; its files are {where}"
