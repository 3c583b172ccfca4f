"""The checkpoint store: durable publish, choice of the newest valid one, quarantine, deletion.

The format and the write order are normative: docs/reference/checkpoint-format.md.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from orchestrator.checkpoint.checkpoint import (
    CONTENT_FOLDER,
    MANIFEST_FILE,
    PIN_FILE,
    STATE_FILE,
    Checkpoint,
    is_checkpoint_name,
    order_of,
    read_checkpoint,
)
from orchestrator.checkpoint.digesting_writer import DigestingWriter
from orchestrator.checkpoint.external_files import files_below, take_in
from orchestrator.checkpoint.manifest import FileRecord, Manifest
from orchestrator.checkpoint.retention import Candidate, RetentionPolicy, names_to_keep
from orchestrator.checkpoint.verification import verify
from orchestrator.errors import (
    CheckpointInvalidError,
    CheckpointWriteError,
    NoValidCheckpointError,
    UnreadableError,
)
from orchestrator.rundir.journal import utc_now
from orchestrator.rundir.paths import RunDir, RunIdentity
from orchestrator.system.durable import Disk, write_json

REASON_FILE = "quarantine.json"
WRITING_PREFIX = ".writing-"
TRASH_PREFIX = ".trash-"

# What changes when a file is replaced or written to: inode, size, modification time of each.
Signature = tuple[tuple[int, int, int], ...]


@dataclass
class Store:
    """The checkpoints of one run.

    One process publishes at a time and one deletes: the holder of the run lock, or its trainer.
    """

    run: RunDir
    run_id: str
    disk: Disk = field(default_factory=Disk)
    _verified: dict[str, Signature] = field(default_factory=dict, init=False)

    @classmethod
    def open(cls, run: RunDir, command: list[str], script: str | None = None) -> Self:
        """The store of the run in this directory, which becomes a new run if there is none.

        Raises ConfigError when run.json is damaged, or that of another ``script``. A lost run.json
        is made anew with the id that the newest checkpoint carries.
        """
        adopted = None
        for path in cls(run, run_id="").directories():
            with contextlib.suppress(CheckpointInvalidError, UnreadableError):
                adopted = read_checkpoint(path).manifest.run_id
        return cls(run, RunIdentity.open(run, command, adopted, script).run_id)

    def publish(
        self,
        manifest: Manifest,
        write: Callable[[DigestingWriter], None],
        *,
        direct: bool = False,
    ) -> Checkpoint:
        """Make a checkpoint durable, in the normative order, and return it.

        ``manifest`` comes without files; ``write`` puts the bytes of state.pt into what it is
        given, which with ``direct`` is meant for large pieces of aligned memory. Raises
        CheckpointWriteError when the disk refuses, after removing what was begun; what ``write``
        raises for other reasons passes through, also after the clean-up.
        """
        create = self.disk.create_direct if direct else self.disk.create

        def fill(directory: Path) -> dict[str, FileRecord]:
            with create(directory / STATE_FILE) as file:
                writer = DigestingWriter(file)
                try:
                    write(writer)
                except Exception as error:
                    if writer.error is not None:
                        raise writer.error from error
                    raise
                self.disk.sync(file)
            return {STATE_FILE: writer.record()}

        return self._publish(manifest, fill)

    def publish_files(self, manifest: Manifest, source: Path, *, link: bool) -> Checkpoint:
        """The same for what a framework has written: a directory with all that is in it, or a file.

        With ``link`` hard links stand for copies where the filesystem has them, which is safe only
        if the framework never writes into a file of this name again.
        """

        def fill(directory: Path) -> dict[str, FileRecord]:
            return take_in(source, directory / CONTENT_FOLDER, self.disk, link=link)

        return self._publish(manifest, fill)

    def _publish(
        self, manifest: Manifest, fill: Callable[[Path], dict[str, FileRecord]]
    ) -> Checkpoint:
        temporary = self.run.checkpoints / f"{WRITING_PREFIX}{secrets.token_hex(8)}"
        try:
            self.disk.make_directory(temporary)
            return self._commit(temporary, replace(manifest, files=fill(temporary)))
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError):
                has_older = bool(self.directories())
                raise CheckpointWriteError(manifest.step, error, has_older) from error
            raise

    def _commit(self, temporary: Path, manifest: Manifest) -> Checkpoint:
        """Publish a directory whose files are durable, with a manifest that names them."""
        with self.disk.create(temporary / MANIFEST_FILE) as file:
            file.write(manifest.to_json())
            self.disk.sync(file)
        self.disk.sync_directory(temporary)
        target = self._unused_path(manifest.step)
        self.disk.rename(temporary, target)
        self.disk.sync_directory(self.run.checkpoints)
        return Checkpoint(target, manifest, pinned=False)

    def all(self) -> list[Checkpoint]:
        """The run's readable checkpoints, oldest first; the bytes of their state are not read."""
        found = []
        for path in self.directories():
            with contextlib.suppress(CheckpointInvalidError, UnreadableError):
                checkpoint = read_checkpoint(path)
                if checkpoint.manifest.run_id == self.run_id:
                    found.append(checkpoint)
        return found

    def directories(self) -> list[Path]:
        """Everything that is named like a checkpoint, oldest first. Raises UnreadableError."""
        try:
            return self._directories()
        except OSError as error:
            raise UnreadableError(self.run.checkpoints, error) from None

    def _directories(self) -> list[Path]:
        with contextlib.suppress(FileNotFoundError):
            paths = [p for p in self.run.checkpoints.iterdir() if is_checkpoint_name(p.name)]
            return sorted(paths, key=lambda path: order_of(path.name))
        return []

    def newest_valid(
        self, on_quarantine: Callable[[CheckpointInvalidError], None] = lambda error: None
    ) -> Checkpoint | None:
        """The newest checkpoint that can be trusted; None in a run that never saved one.

        Walks from the newest to the oldest and reads every byte again. What fails verification is
        reported, after it was quarantined if the disk took that; non-finite ones and those of
        another run are passed over. Raises NoValidCheckpointError when there were candidates and
        none is left, since a silent start from zero loses a run, and UnreadableError when one
        cannot be judged.
        """
        passed_over = []
        for path in reversed(self.directories()):
            try:
                checkpoint = read_checkpoint(path)
                if checkpoint.manifest.run_id != self.run_id:
                    passed_over.append(f"{path.name} belongs to run {checkpoint.manifest.run_id}")
                    continue
                if not checkpoint.manifest.healthy:
                    passed_over.append(f"{path.name} holds non-finite values")
                    continue
                # A cached verdict is enough to delete on, not to resume from: a disk loses bytes
                # without touching the inode.
                self._verified.pop(checkpoint.name, None)
                self._verify(checkpoint, to_load=True)
            except CheckpointInvalidError as error:
                # On a disk that takes no change it stays where it is, and is passed over too.
                try:
                    self.quarantine(path, error.reason)
                except OSError:
                    passed_over.append(f"{path.name}: {error.reason}")
                on_quarantine(error)
                continue
            return checkpoint
        passed_over += [f"{path.name} is in quarantine" for path in self.lost()]
        if passed_over:
            raise NoValidCheckpointError(
                f"cannot resume: none of the checkpoints in {self.run.checkpoints} is valid "
                f"({'; '.join(passed_over)}); repair one, or start over with another --run-dir"
            )
        return None

    def newest_verified(self) -> Checkpoint | None:
        """The newest healthy checkpoint that has not changed since it was verified here."""
        for checkpoint in reversed(self.all()):
            if checkpoint.manifest.healthy and (
                (signature := signature_of(checkpoint)) is not None
                and self._verified.get(checkpoint.name) == signature
            ):
                return checkpoint
        return None

    def quarantined(self) -> list[Path]:
        """What was set aside."""
        with contextlib.suppress(OSError):
            return sorted(self.run.quarantine.iterdir())
        return []

    def lost(self) -> list[Path]:
        """The same without what never was a checkpoint."""
        return [p for p in self.quarantined() if is_checkpoint_name(p.name.partition(".")[0])]

    def quarantine(self, path: Path, reason: str) -> None:
        """Move a checkpoint out of the way, with the reason beside it; nothing is deleted.

        Raises OSError when the move fails.
        """
        target = self._place_in_quarantine(path.name)
        self.disk.rename(path, target)
        # The new entry first: between the two it may be seen twice, but never not at all.
        self.disk.sync_directory(self.run.quarantine)
        self.disk.sync_directory(self.run.checkpoints)
        self._verified.pop(path.name, None)
        if target.is_dir() and not target.is_symlink():
            self._leave_note(target, path.name, reason)

    def _place_in_quarantine(self, name: str) -> Path:
        """A path there that is free."""
        if not self.run.quarantine.exists():
            self.disk.make_directory(self.run.quarantine)
            self.disk.sync_directory(self.run.checkpoints)
        target = self.run.quarantine / name
        while os.path.lexists(target):
            target = self.run.quarantine / f"{name}.{secrets.token_hex(2)}"
        return target

    def _leave_note(self, directory: Path, name: str, reason: str) -> None:
        # The note helps a person; on a full disk the move itself matters more.
        with contextlib.suppress(OSError):
            note = {"name": name, "reason": reason, "time": utc_now()}
            write_json(directory / REASON_FILE, note, self.disk)

    def apply_retention(
        self,
        policy: RetentionPolicy,
        in_use: Collection[str] = (),
        on_quarantine: Callable[[CheckpointInvalidError], None] = lambda error: None,
    ) -> list[Checkpoint]:
        """Delete what the policy does not keep, and return it. Call it after a publish only.

        Every checkpoint that counts is verified first (its bytes are read again only if a file
        changed since the last time), so that a deletion never rests on a bad one. Raises
        UnreadableError, having deleted nothing, when one cannot be judged.
        """
        valid = []
        for checkpoint in self.all():
            try:
                self._verify(checkpoint)
            except CheckpointInvalidError as error:
                self.quarantine(checkpoint.path, error.reason)
                on_quarantine(error)
                continue
            valid.append(checkpoint)
        keep = names_to_keep([_candidate(c) for c in valid], policy, in_use)
        return [c for c in valid if c.name not in keep and self._delete(c)]

    def _verify(self, checkpoint: Checkpoint, *, to_load: bool = False) -> None:
        signature = signature_of(checkpoint)
        if signature is None or self._verified.get(checkpoint.name) != signature:
            verify(checkpoint, to_load=to_load)
            if signature is not None:
                self._verified[checkpoint.name] = signature

    def _delete(self, checkpoint: Checkpoint) -> bool:
        """Delete one checkpoint, unless it was pinned meanwhile or holds files of others."""
        content = checkpoint.content.relative_to(checkpoint.path)
        ours = {MANIFEST_FILE, *(str(content / name) for name in checkpoint.manifest.files)}
        try:
            if (
                files_below(checkpoint.path) != ours
                or (trash := self._to_trash(checkpoint)) is None
            ):
                return False
            for name in ours:
                self.disk.remove(trash / name)
            for folder, _, _ in os.walk(trash, topdown=False):
                self.disk.remove(Path(folder))
        except OSError:
            # Whatever is left keeps its trash name and is swept at the next start.
            return False
        self._verified.pop(checkpoint.name, None)
        return True

    def _to_trash(self, checkpoint: Checkpoint) -> Path | None:
        """Where it is now, no checkpoint any more; None if it was pinned meanwhile."""
        trash = self.run.checkpoints / f"{TRASH_PREFIX}{checkpoint.name}-{secrets.token_hex(4)}"
        self.disk.rename(checkpoint.path, trash)
        if (trash / PIN_FILE).exists():
            # Pinned between the look and the rename.
            self.disk.rename(trash, checkpoint.path)
            return None
        self.disk.sync_directory(self.run.checkpoints)
        return trash

    def sweep(self) -> None:
        """Remove what a dead process of ours left half-written or half-deleted.

        Only under the run lock and while no trainer runs: a live writer's files look the same.
        """
        # What cannot be removed now costs room and nothing else.
        with contextlib.suppress(OSError):
            for path in list(self.run.checkpoints.iterdir()):
                if path.name.startswith((WRITING_PREFIX, TRASH_PREFIX)):
                    shutil.rmtree(path, ignore_errors=True)

    def pin(self, checkpoint: Checkpoint) -> None:
        """Keep this checkpoint whatever the policy says. Raises OSError."""
        (checkpoint.path / PIN_FILE).touch()
        self.disk.sync_directory(checkpoint.path)

    def unpin(self, checkpoint: Checkpoint) -> None:
        """Leave this checkpoint to the policy again. Raises OSError."""
        (checkpoint.path / PIN_FILE).unlink(missing_ok=True)

    def _unused_path(self, step: int) -> Path:
        # What is in quarantine keeps its name: the journal and people know it by that.
        aside = [path.name.partition(".")[0] for path in self.lost()]
        used = [path.name for path in self._directories()] + aside
        taken = {order_of(name)[1] for name in used if order_of(name)[0] == step}
        base = self.run.checkpoints / f"step-{step:012d}"
        return base if not taken else base.with_name(f"{base.name}-{max(taken) + 1}")


def _candidate(checkpoint: Checkpoint) -> Candidate:
    return Candidate(
        name=checkpoint.name,
        order=checkpoint.order,
        healthy=checkpoint.manifest.healthy,
        pinned=checkpoint.pinned,
        metrics=checkpoint.manifest.metrics,
    )


def signature_of(checkpoint: Checkpoint) -> Signature | None:
    """Of its files as they are now; None where one cannot be looked at."""
    try:
        stats = [os.lstat(checkpoint.content / name) for name in sorted(checkpoint.manifest.files)]
    except OSError:
        return None  # reading it will tell what is wrong
    return tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in stats)
