"""What a checkpoint consists of: a session's state file, a framework's files or a script's own.

Each kind knows where its files are and what a trainer resumes from.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from orchestrator.checkpoint.adopted import Adopted
from orchestrator.checkpoint.manifest import Manifest
from orchestrator.errors import ConfigError

STATE_FILE = "state.pt"

CONTENT_FOLDER = "content"


def rank_file(rank: int) -> str:
    """Return the name of the file with what a rank other than 0 has saved of its own."""
    return f"rank-{rank:05d}.pt"


def file_of_rank(rank: int) -> str:
    """Return the name of the file that a rank has saved."""
    return rank_file(rank) if rank else STATE_FILE


@dataclass(frozen=True)
class StateFile:
    """The state of a session: one ``torch.save`` file beside the manifest in ``directory``."""

    directory: Path

    @property
    def folder(self) -> Path:
        """The directory that the file names of the manifest are relative to."""
        return self.directory

    @property
    def state_file(self) -> Path:
        """The ``torch.save`` file."""
        return self.directory / STATE_FILE

    @property
    def resume_path(self) -> Path:
        """The path that a trainer is given to resume from."""
        return self.state_file

    @property
    def shown_path(self) -> Path:
        """The path that people are shown."""
        return self.directory


@dataclass(frozen=True)
class FrameworkFiles:
    """What a framework's trainer has written, below ``content/`` in ``directory``."""

    directory: Path
    framework: str

    @property
    def folder(self) -> Path:
        """The directory that the file names of the manifest are relative to."""
        return self.directory / CONTENT_FOLDER

    @property
    def state_file(self) -> Path:
        """Always raises ConfigError: there is no ``torch.save`` file of a session."""
        raise _without_state_file(self.directory, self.framework, self.folder)

    @property
    def resume_path(self) -> Path:
        """The path that a trainer is given to resume from."""
        return self.folder

    @property
    def shown_path(self) -> Path:
        """The path that people are shown."""
        return self.directory


@dataclass(frozen=True)
class AdoptedFiles:
    """What a script has saved for itself (``--adopt``); ``directory`` holds a copy, or only a seal.

    The script's own path is what it resumes from, so a kept copy must be put back there first.
    """

    directory: Path
    adopted: Adopted

    @property
    def script_path(self) -> Path:
        """The file or directory that the script wrote.

        In a project that was moved as a whole it is where the run directory's move has taken it.
        """
        moved = self.path_from_run
        return moved if moved is not None and os.path.lexists(moved) else Path(self.adopted.path)

    @property
    def path_from_run(self) -> Path | None:
        """The script's path as seen from the run directory as it is now; None if not recorded."""
        if self.adopted.path_from_run is None:
            return None
        run = os.path.join(os.path.abspath(self.directory), "..", "..")
        return Path(os.path.normpath(os.path.join(run, self.adopted.path_from_run)))

    @property
    def folder(self) -> Path:
        """The directory that the file names of the manifest are relative to."""
        if self.adopted.kept:
            return self.directory / CONTENT_FOLDER
        return self.adopted.folder_from(self.script_path)

    @property
    def script_paths(self) -> dict[str, Path]:
        """Everything that the script wrote together, by name; ``script_path`` comes first."""
        return self.adopted.paths_from(self.script_path)

    @property
    def state_file(self) -> Path:
        """Always raises ConfigError: there is no ``torch.save`` file of a session."""
        raise _without_state_file(self.directory, "the script itself", self.shown_path)

    @property
    def resume_path(self) -> Path:
        """The path that a trainer is given to resume from."""
        return self.script_path

    @property
    def shown_path(self) -> Path:
        """The path that people are shown."""
        return self.directory if self.adopted.kept else self.script_path


Contents = StateFile | FrameworkFiles | AdoptedFiles


def contents_of(directory: Path, manifest: Manifest) -> Contents:
    """Return what the manifest in a checkpoint's directory says that the checkpoint consists of."""
    if manifest.adopted is not None:
        return AdoptedFiles(directory, manifest.adopted)
    if manifest.framework is not None:
        return FrameworkFiles(directory, manifest.framework)
    return StateFile(directory)


def _without_state_file(directory: Path, writer: str, files: Path) -> ConfigError:
    return ConfigError(
        f"cannot take a {STATE_FILE} from {directory}: {writer} has saved it in its own form; "
        f"copy its files from {files}, or load them from there"
    )
