"""The quarantine of a run: checkpoints and leftovers that nothing may resume from."""

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from orchestrator.checkpoint.checkpoint import is_checkpoint_name
from orchestrator.rundir.journal import utc_now
from orchestrator.rundir.paths import RunDir
from orchestrator.system.durable import Disk, write_json

REASON_FILE = "quarantine.json"


@dataclass(frozen=True)
class QuarantineFolder:
    """The folder that keeps what failed verification; nothing in it is deleted."""

    run: RunDir
    disk: Disk

    def entries(self) -> list[Path]:
        """Return the paths of everything in it, sorted."""
        with contextlib.suppress(OSError):
            return sorted(self.run.quarantine.iterdir())
        return []

    def checkpoints(self) -> list[Path]:
        """Return the paths of the entries that once were checkpoints."""
        return [p for p in self.entries() if is_checkpoint_name(p.name.partition(".")[0])]

    def move_in(self, checkpoint: Path, reason: str) -> None:
        """Move a checkpoint's directory into the folder, with the reason beside its files.

        Raises OSError when the move fails.
        """
        target = self.free_path(checkpoint.name)
        self.disk.rename(checkpoint, target, below=self.run.root)
        # The new entry first: a power loss between the two may show it twice, but never not at all.
        self.disk.sync_directory(self.run.quarantine)
        self.disk.sync_directory(self.run.checkpoints)
        if os.path.isdir(target) and not os.path.islink(target):
            self.write_note(target, checkpoint.name, reason)

    def free_path(self, name: str) -> Path:
        """Return a path in the folder that nothing has yet; make the folder. Raises OSError."""
        if not os.path.exists(self.run.quarantine):
            self.disk.make_directory(self.run.quarantine, below=self.run.root)
            self.disk.sync_directory(self.run.checkpoints)
        target = self.run.quarantine / name
        while os.path.lexists(target):
            target = self.run.quarantine / f"{name}.{secrets.token_hex(2)}"
        return target

    def write_note(self, directory: Path, name: str, reason: str) -> None:
        """Write down why ``directory`` is here, if the disk has room for that."""
        # The note helps a person; on a full disk the move itself matters more.
        with contextlib.suppress(OSError):
            note = {"name": name, "reason": reason, "time": utc_now()}
            write_json(directory / REASON_FILE, note, self.disk, below=self.run.root)
