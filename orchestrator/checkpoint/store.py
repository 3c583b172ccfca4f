"""The checkpoint store: what checkpoints a run has, their quarantine and their deletion.

``publication`` makes new ones, ``newest_valid`` chooses the one to resume from.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Self

from orchestrator.checkpoint.checkpoint import (
    PIN_FILE,
    Checkpoint,
    checkpoint_names,
    has_too_many_digits,
    read_checkpoint,
)
from orchestrator.checkpoint.checkpoint_cache import CheckpointCache
from orchestrator.checkpoint.disposal import Disposal, OwnFiles
from orchestrator.checkpoint.quarantine import QuarantineFolder
from orchestrator.checkpoint.retention import (
    DEFAULT_KEEP,
    Candidate,
    RetentionPolicy,
    names_to_keep,
)
from orchestrator.checkpoint.temporary import TRASH_PREFIX, WRITING_PREFIX, trash_path
from orchestrator.checkpoint.verification_cache import VerificationCache
from orchestrator.errors import CheckpointInvalidError, ConfigError, UnreadableError
from orchestrator.rundir.identity import RunIdentity, is_id
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.start import Start
from orchestrator.system.durable import Disk, remove_tree
from orchestrator.system.regular_files import open_regular


@dataclass
class Store:
    """The checkpoints of one run.

    One process publishes at a time and one deletes: the holder of the run lock, or its trainer.
    """

    run: RunDir
    run_id: str
    disk: Disk = field(default_factory=Disk)
    disposal: Disposal = field(default_factory=OwnFiles)
    start: Start | None = None
    """How the training that saves here was started; None where only something is looked up."""
    verified: VerificationCache = field(default_factory=VerificationCache, init=False)
    _cache: CheckpointCache = field(default_factory=CheckpointCache, init=False, compare=False)

    @classmethod
    def open(
        cls,
        run: RunDir,
        command: list[str],
        script: str | None = None,
        disposal: Disposal | None = None,
        start: Start | None = None,
        *,
        accept_other: bool = False,
    ) -> Self:
        """Open the store of the run in this directory, which becomes a new run if there is none.

        A lost run.json is written again, with the id that the newest checkpoint carries. Raises
        ConfigError when run.json is damaged or belongs to another ``script``, unless
        ``accept_other``.
        """
        known_id = None
        if not os.path.exists(run.run_file):
            for path in reversed(cls(run, run_id="").directories()):
                with contextlib.suppress(CheckpointInvalidError, UnreadableError):
                    found = read_checkpoint(path).manifest.run_id
                    if is_id(found):
                        known_id = found
                        break
        identity = RunIdentity.open(
            run, command, known_id, script, start, accept_other=accept_other
        )
        return cls(run, identity.run_id, disposal=disposal or OwnFiles(), start=start)

    @property
    def start_record(self) -> dict[str, Any] | None:
        """``start`` as manifests keep it."""
        return None if self.start is None else self.start.to_json()

    # --- finding -----------------------------------------------------------------------------

    def all(self) -> list[Checkpoint]:
        """Return the run's readable checkpoints, oldest first, without reading their files."""
        return list(self.newest_first())[::-1]

    def newest_first(self, deadline: float = math.inf) -> Iterator[Checkpoint]:
        """Yield what ``all`` returns in the reverse order, each read only when it is asked for.

        Raises ConfigError where the ``deadline``, a time of the monotonic clock, comes first.
        """
        names = self.names()
        self._cache.forget_others(names)
        for name in reversed(names):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"cannot read {self.run.checkpoints} in time, down to {name}; move the newer "
                    "checkpoints away if they are damaged"
                )
            with contextlib.suppress(CheckpointInvalidError, UnreadableError):
                checkpoint = self._cache.read(self.run.checkpoints / name)
                located = self.disposal.locate(checkpoint)
                if located is not None and checkpoint.manifest.run_id == self.run_id:
                    yield located

    def newest_healthy(self, deadline: float = math.inf) -> Checkpoint | None:
        """Return the newest readable checkpoint whose values are finite, not verified.

        Raises ConfigError where the ``deadline`` comes first.
        """
        return next((c for c in self.newest_first(deadline) if c.manifest.healthy), None)

    def directories(self) -> list[Path]:
        """Return everything that is named like a checkpoint, oldest first.

        Raises UnreadableError.
        """
        folder = self.run.checkpoints
        return [folder / name for name in self.names()]

    def names(self) -> list[str]:
        """Return the names of ``directories``. Raises UnreadableError."""
        try:
            return checkpoint_names(self.run)
        except OSError as error:
            raise UnreadableError(self.run.checkpoints, error) from None

    def unrecognised(self) -> list[str]:
        """Return a sentence about each thing that looks like a checkpoint and has no such name."""
        with contextlib.suppress(OSError):
            names = sorted(path.name for path in self.run.checkpoints.iterdir())
            return [
                f"{name} has more digits than the name of a checkpoint"
                for name in names
                if has_too_many_digits(name)
            ]
        return []

    def newest_verified(self) -> Checkpoint | None:
        """Return the newest healthy checkpoint that has not changed since it was verified here."""
        for checkpoint in self.newest_first():
            if checkpoint.manifest.healthy and self.verified.is_current(checkpoint):
                return checkpoint
        return None

    # --- quarantine and deletion -------------------------------------------------------------

    @property
    def quarantine_folder(self) -> QuarantineFolder:
        """The folder of what failed verification."""
        return QuarantineFolder(self.run, self.disk)

    def quarantine(self, path: Path, reason: str) -> None:
        """Move the checkpoint in this directory to quarantine, with the reason beside its files.

        Raises OSError when the move fails.
        """
        elsewhere = self.disposal.gather(path, self.all(), self.disk)
        if elsewhere is not None:
            reason = f"{reason}; its files are {elsewhere}"
        self.quarantine_folder.move_in(path, reason)
        self.verified.forget(path.name)

    def apply_retention(
        self,
        policy: RetentionPolicy,
        in_use: Collection[str] = (),
        on_quarantine: Callable[[CheckpointInvalidError], None] = lambda error: None,
    ) -> list[Checkpoint]:
        """Delete what the policy does not keep, and return it. Call it after a publish only.

        Before a deletion every checkpoint that counts is verified (its bytes are read again only if
        a file changed since the last time), so that none rests on a bad one. While the policy keeps
        all of them, only the newest are. Raises UnreadableError, having deleted nothing, when one
        cannot be judged.
        """
        is_within = len(self.names()) <= policy.keep
        if is_within and not self.disposal.verifies_all:
            return []
        counted = list(islice(self.newest_first(), DEFAULT_KEEP)) if is_within else self.all()
        valid = []
        for checkpoint in counted:
            try:
                self.verified.verify(checkpoint)
            except CheckpointInvalidError as error:
                self.quarantine(checkpoint.path, error.reason)
                on_quarantine(error)
                continue
            valid.append(checkpoint)
        if is_within:
            return []
        keep = names_to_keep([_candidate(c) for c in valid], policy, in_use)
        return [c for c in valid if c.name not in keep and self.delete(c)]

    def delete(self, checkpoint: Checkpoint) -> bool:
        """Delete one checkpoint and return whether it is gone.

        It stays if it was pinned in the meantime, if its directory holds files of others, and if
        the disk refuses.
        """
        try:
            if not self.disposal.may_delete(checkpoint):
                return False
            trash = self._rename_to_trash(checkpoint)
            if os.path.exists(trash / PIN_FILE):
                # Pinned between the check and the rename.
                self.disk.rename(trash, checkpoint.path, below=self.run.root)
                return False
            self.disk.sync_directory(self.run.checkpoints)
            self.disposal.remove(checkpoint, trash, self.disk)
        except OSError:
            # Whatever is left keeps its trash name and is swept at the next start.
            return False
        self.verified.forget(checkpoint.name)
        return True

    def withdraw(self, checkpoint: Checkpoint) -> None:
        """Remove a checkpoint's directory, pinned or not, whose files elsewhere are gone.

        Raises OSError.
        """
        trash = self._rename_to_trash(checkpoint)
        self.disk.sync_directory(self.run.checkpoints)
        remove_tree(trash, below=self.run.root)

    def _rename_to_trash(self, checkpoint: Checkpoint) -> Path:
        trash = trash_path(self.run, checkpoint.name)
        self.disk.rename(checkpoint.path, trash, below=self.run.root)
        return trash

    def sweep(self) -> None:
        """Remove what a dead process left half-written or half-deleted.

        Call it only under the run lock and while no trainer runs: the files of a live writer look
        the same.
        """
        # What cannot be removed now costs disk space and nothing else.
        with contextlib.suppress(OSError):
            for path in list(self.run.checkpoints.iterdir()):
                if path.name.startswith((WRITING_PREFIX, TRASH_PREFIX)):
                    remove_tree(path, below=self.run.root)

    # --- pins --------------------------------------------------------------------------------

    def pin(self, checkpoint: Checkpoint) -> None:
        """Keep this checkpoint whatever the policy says. Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT
        os.close(open_regular(checkpoint.path / PIN_FILE, flags, real_parents=1))
        self.disk.sync_directory(checkpoint.path)

    def unpin(self, checkpoint: Checkpoint) -> None:
        """Leave this checkpoint to the policy again. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self.disk.remove(checkpoint.path / PIN_FILE, below=self.run.root)


def _candidate(checkpoint: Checkpoint) -> Candidate:
    return Candidate(
        name=checkpoint.name,
        order=checkpoint.order,
        healthy=checkpoint.manifest.healthy,
        pinned=checkpoint.pinned,
        metrics=checkpoint.manifest.metrics,
    )
