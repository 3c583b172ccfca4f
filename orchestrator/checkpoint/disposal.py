"""How the files of a checkpoint are moved and removed, which depends on who owns them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from orchestrator.checkpoint.checkpoint import MANIFEST_FILE, Checkpoint
from orchestrator.checkpoint.contents import AdoptedFiles
from orchestrator.system.durable import Disk
from orchestrator.system.real_trees import directories_from, files_below


class Disposal(Protocol):
    """What a store asks before it uses, quarantines or deletes a checkpoint."""

    verifies_all: bool
    """Whether retention verifies checkpoints even while the policy keeps all of them."""

    def locate(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """Return the checkpoint with the path at which its files are now.

        Return None where its files are not among those that the command has named.
        """

    def gather(self, path: Path, checkpoints: Iterable[Checkpoint], disk: Disk) -> Path | None:
        """Bring files from elsewhere into the directory ``path``, which goes to quarantine.

        ``checkpoints`` are those of the run. Return where the files are now, if they could not be
        moved into the directory. Raises OSError.
        """

    def may_delete(self, checkpoint: Checkpoint) -> bool:
        """Return whether all files of the checkpoint may be deleted. Raises OSError."""

    def remove(self, checkpoint: Checkpoint, trash: Path, disk: Disk) -> None:
        """Remove ``trash``, to which the checkpoint's directory was renamed. Raises OSError."""


class OwnFiles:
    """Disposes of checkpoints that consist of the files in their own directory."""

    verifies_all = True

    def locate(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """Return the checkpoint; None where a manifest names files of a script, anywhere."""
        return None if isinstance(checkpoint.contents, AdoptedFiles) else checkpoint

    def gather(self, path: Path, checkpoints: Iterable[Checkpoint], disk: Disk) -> Path | None:
        """Return None: every file is in the directory."""
        return None

    def may_delete(self, checkpoint: Checkpoint) -> bool:
        """Return whether the directory holds the checkpoint's files and no others.

        Raises OSError.
        """
        if checkpoint.manifest.adopted is not None:
            return False
        return files_below(checkpoint.path) == _own_names(checkpoint)

    def remove(self, checkpoint: Checkpoint, trash: Path, disk: Disk) -> None:
        """Remove the checkpoint's files and folders one by one. Raises OSError."""
        run = trash.parents[1]
        for name in _own_names(checkpoint):
            disk.remove(trash / name, below=run)
        for folder in directories_from(trash):
            disk.remove(folder, below=run)


class FilesOfAnyRun(OwnFiles):
    """For commands that show a run, of a session or of a script, and train nothing."""

    def locate(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """Return the checkpoint with the path that its manifest has: it is only read."""
        return checkpoint


def _own_names(checkpoint: Checkpoint) -> set[str]:
    folder = checkpoint.contents.folder.relative_to(checkpoint.path)
    return {MANIFEST_FILE, *(str(folder / name) for name in checkpoint.manifest.files)}
