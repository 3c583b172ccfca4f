"""The seals of a run whose script saves for itself: what makes its saves checkpoints.

A seal is a checkpoint's directory like any other, with a manifest that says where the files are.
Of a path that the script overwrites with each save the seal holds a copy.
"""

import contextlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator import __version__
from orchestrator.adopt.file_owners import FileOwners
from orchestrator.adopt.files import SavedFiles
from orchestrator.adopt.script_files import move_out_of_sight, saved_paths
from orchestrator.adopt.unit_pattern import UnitPattern
from orchestrator.checkpoint.adopted import Adopted
from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.contents import CONTENT_FOLDER
from orchestrator.checkpoint.external_files import link_or_copy, sync_and_digest
from orchestrator.checkpoint.manifest import FileRecord, Manifest, Reason
from orchestrator.checkpoint.publication import publish_directory
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import verify_files
from orchestrator.errors import CheckpointInvalidError
from orchestrator.rundir.journal import utc_now
from orchestrator.system.durable import remove_tree
from orchestrator.system.real_trees import directories_from, make_directories
from orchestrator.system.regular_files import NEW_DIRECTORY_MODE

DOUBT = "saved by the script itself; only the script knows what it restores"
RESTORING_SUFFIX = ".orchestrator-restoring"


@dataclass(frozen=True)
class Seal:
    """A checkpoint that stands for what the script has saved."""

    checkpoint: Checkpoint
    adopted: Adopted

    @property
    def path(self) -> Path:
        """The file or directory that the script wrote."""
        return Path(self.adopted.path)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Everything that the script wrote together."""
        return saved_paths(self.adopted)


@dataclass(frozen=True)
class Sealing:
    """How files become a checkpoint.

    ``members`` describes the files of a unit, and is None for a single path. ``number`` is the one
    in the name, None where there is none. ``keep`` asks for a copy in the store; with
    ``keeps_all_versions`` only retention deletes earlier copies. ``link`` says that the script
    replaces its files and never writes into them, so that a hard link is a copy.
    """

    files: SavedFiles
    members: dict[str, str] | None
    step: int
    number: int | None
    reason: Reason
    written_here: bool
    keep: bool
    keeps_all_versions: bool = False
    link: bool = False


class _ChangedError(Exception):
    """The script has written to the files while they were sealed."""


@dataclass(frozen=True)
class SealStore:
    """Seals what the script has saved, sets it aside, and puts a kept copy back."""

    store: Store
    pattern: UnitPattern

    def seal(self, sealing: Sealing) -> Checkpoint | None:
        """Make a checkpoint of the files; None if they changed meanwhile. Raises OSError."""
        files, disk = sealing.files, self.store.disk

        def fill(directory: Path) -> dict[str, FileRecord]:
            # The pattern names what is below its base: neither a link, nor anything behind one.
            root, run = files.root, self.store.run.root
            if sealing.keep:
                root = directory / CONTENT_FOLDER
                root.mkdir(NEW_DIRECTORY_MODE)
                for name, modified in files.modified_ns.items():
                    link_or_copy(
                        files.root / name,
                        root / name,
                        disk,
                        link=sealing.link,
                        below=files.base_of(name),
                        target_below=run,
                        modified_ns=modified,
                    )
            records = {
                name: sync_and_digest(
                    root / name, disk, run if sealing.keep else files.base_of(name)
                )
                for name in files.states
            }
            for folder in {root, root.parent, *((root / name).parent for name in records)}:
                disk.sync_directory(folder)
            read = {name: record.bytes for name, record in records.items()}
            # Two saves within one tick of the clock have the same time.
            if files.now() != files or read != files.sizes:
                raise _ChangedError
            return records

        try:
            checkpoint = publish_directory(self.store.run, disk, self._manifest(sealing), fill)
        except Exception as error:
            if isinstance(error, _ChangedError) or files.now() != files:
                return None
            raise
        self.store.verified.record(checkpoint)
        return checkpoint

    def _manifest(self, sealing: Sealing) -> Manifest:
        files = sealing.files
        return Manifest(
            run_id=self.store.run_id,
            step=sealing.step,
            epoch=0,
            reason=sealing.reason,
            metrics={},
            healthy=True,
            time=utc_now(),
            files={},
            versions={"orchestrator": __version__},
            doubts=[DOUBT],
            start=self.store.start_record,
            adopted=Adopted(
                path=str(files.path),
                is_directory=files.is_directory,
                numbered=sealing.number is not None,
                number=sealing.number,
                written_here=sealing.written_here,
                kept=sealing.keep,
                modified_ns=files.modified_ns,
                path_from_run=os.path.relpath(files.path, os.path.abspath(self.store.run.root)),
                members=sealing.members,
            ),
        )

    def seals(self) -> dict[Path, Seal]:
        """Return the seal of what each path of the script holds, or else the one sealed last."""
        of_path: dict[Path, list[Seal]] = defaultdict(list)
        for seal in map(_seal_of, self.store.all()):
            if seal is not None:
                of_path[seal.path].append(seal)
        return {path: self._current(seals) for path, seals in of_path.items()}

    def _current(self, seals: list[Seal]) -> Seal:
        if len(seals) > 1 and (files := self.files_now(seals[-1])) is not None:
            for seal in reversed(seals):
                if seal.adopted.modified_ns == files.modified_ns:
                    return seal
        return max(seals, key=lambda seal: max(seal.adopted.modified_ns.values()))

    @property
    def highest_step(self) -> int:
        """The highest step of the run's checkpoints; 0 without any."""
        newest = next(self.store.newest_first(), None)
        return 0 if newest is None else newest.manifest.step

    def withdraw(self, seal: Seal) -> None:
        """Remove a seal whose files are deleted or written again. Raises OSError."""
        self.store.withdraw(seal.checkpoint)

    def withdraw_older(self, checkpoint: Checkpoint, kept_versions: int | None = None) -> None:
        """Remove the earlier seals of a path that was sealed again: their files are gone.

        Of those that hold copies, the newest ``kept_versions`` stay, or all of them.
        """
        newest = _seal_of(checkpoint)
        versions = 0
        for older in map(_seal_of, self.store.newest_first()):
            if older is None or newest is None or older.path != newest.path:
                continue
            versions += older.adopted.kept
            stays = older.adopted.kept and (
                kept_versions is None or versions <= kept_versions or older.checkpoint.pinned
            )
            if not stays and older.checkpoint.name != checkpoint.name:
                with contextlib.suppress(OSError):  # perhaps it is being deleted
                    self.withdraw(older)

    def files_now(self, seal: Seal) -> SavedFiles | None:
        """Look at what is at the paths of a seal now; None where there is nothing."""
        return self.pattern.look_at(seal.paths)

    def put_back(self, seal: Seal) -> None:
        """Copy the kept version to the script's own paths, where nothing is. Raises OSError."""
        disk, run, base = self.store.disk, self.store.run.root, self.pattern.base_of(seal.path)
        root = seal.adopted.folder_from(seal.path)
        folder = root.parent if root == seal.path else root
        make_directories(folder, base)
        temporary = folder / f".{seal.path.name}{RESTORING_SUFFIX}"
        remove_tree(temporary, below=base)
        disk.make_directory(temporary, below=base)
        for name, modified in seal.adopted.modified_ns.items():
            link_or_copy(
                seal.checkpoint.contents.folder / name,
                temporary / name,
                disk,
                link=False,
                below=run,
                target_below=base,
                modified_ns=modified,
            )
        for path in seal.paths:
            target_below = self.pattern.base_of(path)
            make_directories(path.parent, target_below)
            part = temporary / path.relative_to(root)
            disk.rename(part, path, below=target_below, source_below=base)
            disk.sync_directory(path.parent)
        if root != seal.path:
            remove_tree(temporary, below=base)

    def is_in_place(self, seal: Seal) -> bool:
        """Return whether the script's own path holds this very version, every byte of it."""
        files, checkpoint = self.files_now(seal), seal.checkpoint
        if files is None or files.states.keys() != checkpoint.manifest.files.keys():
            return False
        try:
            if FileOwners(self.store.run).stranger_of(files) is not None:
                return False
            verify_files(checkpoint, files.root, to_load=True)
        except (CheckpointInvalidError, OSError):
            return False
        return True

    def set_aside(self, paths: Sequence[Path], reason: str) -> Path:
        """Move to quarantine what never was a checkpoint, and return its new path. Raises OSError.

        Of a unit it is the path of the first part. The reason is written down beside it.
        """
        quarantine, path, disk = self.store.quarantine_folder, paths[0], self.store.disk
        directory = quarantine.free_path(f"partial-{path.name}")
        disk.make_directory(directory, below=self.store.run.root)
        try:
            moved = move_out_of_sight(paths, directory, disk, self.store.run.root, self.pattern)
        except OSError:
            # Of a unit, a part may be in there already.
            with contextlib.suppress(OSError):
                for folder in directories_from(directory):
                    with contextlib.suppress(OSError):
                        disk.remove(folder, below=self.store.run.root)
            raise
        moved_to = moved[0]
        if not moved_to.is_relative_to(directory):
            reason = f"{reason}; its files are {moved_to}"
        quarantine.write_note(directory, path.name, reason)
        return moved_to


def _seal_of(checkpoint: Checkpoint) -> Seal | None:
    adopted = checkpoint.manifest.adopted
    return None if adopted is None else Seal(checkpoint, adopted)
