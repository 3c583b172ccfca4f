"""Every path in a run directory."""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.rundir.error_record import checked_error
from orchestrator.rundir.ownership import refuse_unsafe
from orchestrator.rundir.records import read_record
from orchestrator.system.durable import remove_temporaries
from orchestrator.system.regular_files import NEW_DIRECTORY_MODE

_ATTEMPT_NAME = re.compile(r"[0-9]{1,9}")
_RANK_NAME = re.compile(r"rank-[0-9]{5,}")
DEFAULT_PARENT = Path("runs")


@dataclass(frozen=True)
class RunDir:
    """The paths in a run directory (docs/reference/checkpoint-format.md)."""

    root: Path

    @property
    def run_file(self) -> Path:
        """The identity of the run."""
        return self.root / "run.json"

    @property
    def trust_file(self) -> Path:
        """The other users whose files the owner of this file has agreed to resume from."""
        return self.root / "trust.json"

    @property
    def lock_file(self) -> Path:
        """The file that the supervisor and the trainer hold with flock."""
        return self.root / "lock"

    @property
    def journal_file(self) -> Path:
        """The events of the run, one JSON object on each line."""
        return self.root / "journal.jsonl"

    @property
    def journal_index_file(self) -> Path:
        """A summary of the journal, which may be deleted at any time."""
        return self.root / "journal.index.json"

    @property
    def metrics_file(self) -> Path:
        """The metrics of the run's steps, one JSON object on each line."""
        return self.root / "metrics.jsonl"

    @property
    def tracking_file(self) -> Path:
        """The ids of this run in experiment trackers that choose ids themselves."""
        return self.root / "tracking.json"

    @property
    def log_file(self) -> Path:
        """The log of the run's supervisors, one JSON object on each line."""
        return self.root / "supervisor.log"

    @property
    def attempts(self) -> Path:
        """The records of the attempts, one directory each."""
        return self.root / "attempts"

    @property
    def checkpoints(self) -> Path:
        """Published checkpoints, one directory each."""
        return self.root / "checkpoints"

    @property
    def quarantine(self) -> Path:
        """Checkpoints that failed verification."""
        return self.checkpoints / "quarantine"

    @property
    def done_file(self) -> Path:
        """A file that exists only when the training is complete."""
        return self.root / "done.json"

    @property
    def requeue_file(self) -> Path:
        """A file that exists when the requeue of a SLURM job was wanted and has failed."""
        return self.root / "requeue.json"

    @property
    def reserve_file(self) -> Path:
        """Disk space that is reserved for an emergency save."""
        return self.root / "reserve"

    @property
    def write_ledger_file(self) -> Path:
        """Paths that an adopted script has begun to write and that are not checkpoints yet."""
        return self.root / "written.json"

    @property
    def all_paths(self) -> list[Path]:
        """The directory and every path in it, with one checkpoint and one attempt as examples."""
        return [
            self.root,
            *_paths_of(self),
            self.checkpoints / "step-000000000000",
            self.attempt(1).root,
        ]

    def attempt(self, number: int) -> "AttemptDir":
        """Return the directory of one attempt, counted from 1."""
        return AttemptDir(self.attempts / f"{number:04d}")

    def last_attempt(self) -> int:
        """Return the number of the newest attempt on disk; 0 before the first. Raises OSError."""
        names = (path.name for path in self.attempts.iterdir())
        return max((int(name) for name in names if _ATTEMPT_NAME.fullmatch(name)), default=0)

    def create(self) -> None:
        """Create the directories. Raises ConfigError when that is not possible."""
        try:
            self.root.mkdir(NEW_DIRECTORY_MODE, parents=True, exist_ok=True)
            self.checkpoints.mkdir(NEW_DIRECTORY_MODE, exist_ok=True)
            self.attempts.mkdir(NEW_DIRECTORY_MODE, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(
                f"cannot use {self.root} as the run directory: it is a file, or is below one; "
                "name a directory with --run-dir"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"cannot create the run directory {self.root}: {error.strerror}; "
                "name a writable directory with --run-dir"
            ) from None
        if not os.access(self.root, os.W_OK) or not os.access(self.checkpoints, os.W_OK):
            raise ConfigError(
                f"cannot write to the run directory {self.root}; "
                "fix its permissions or name another with --run-dir"
            )
        refuse_unsafe([self.root, self.checkpoints, self.attempts])

    def remove_temporaries(self) -> None:
        """Remove files that a dead process had not yet given their names.

        Call it only under the run lock and while no trainer runs. Only the newest attempt's records
        can have been cut short since the last call.
        """
        remove_temporaries(self.root, {path.name for path in self.all_paths}, below=self.root)
        with contextlib.suppress(OSError):
            for rank in self.attempt(self.last_attempt()).ranks():
                names = {path.name for path in rank.all_paths}
                remove_temporaries(rank.root, names, below=self.root)

    def read_done(self) -> dict[str, Any] | None:
        """Return the content of done.json; None while the training is not complete.

        Raises ConfigError when the file is damaged or cannot be read.
        """
        return read_record(
            self.done_file,
            "move it away to continue the run from its newest checkpoint if there is more to train",
        )


def _paths_of(directory: "RunDir | AttemptDir") -> list[Path]:
    """Return the paths that the other properties of a directory hold."""
    kinds = vars(type(directory)).items()
    names = [name for name, kind in kinds if isinstance(kind, property) and name != "all_paths"]
    return [getattr(directory, name) for name in names]


def real_parents_of(file: Path) -> int:
    """Return how many directories are between a run directory and a file of an attempt.

    They are attempts/, 0001/ and, except for rank 0, rank-00001/. None of them may be a link.
    """
    return 3 if _RANK_NAME.fullmatch(file.parent.name) else 2


def run_root_above(file: Path) -> Path:
    """Return the run directory of a file of an attempt."""
    return file.parents[real_parents_of(file)]


def default_run_dir(script: str) -> Path:
    """Return ``runs/<name>`` for the path of a script or a program."""
    return DEFAULT_PARENT / name_of(script)


def name_of(script: str) -> str:
    """Return the name of a script, by which supervised and standalone sessions share one run."""
    path = Path(script)
    name = path.parent.name if path.stem == "__main__" else path.stem
    return name or "run"


@dataclass(frozen=True)
class AttemptDir:
    """The paths of the records about one attempt."""

    root: Path

    @property
    def all_paths(self) -> list[Path]:
        """Every path in the directory."""
        return _paths_of(self)

    def rank(self, number: int) -> "AttemptDir":
        """Return the directory of one rank: this one for rank 0, one in it for any other."""
        return AttemptDir(self.root / f"rank-{number:05d}") if number else self

    def ranks(self) -> list["AttemptDir"]:
        """Return the directories of the ranks that have one, rank 0 first. Raises OSError."""
        names = sorted(filter(_RANK_NAME.fullmatch, os.listdir(self.root)))
        return [self, *(AttemptDir(self.root / name) for name in names)]

    @property
    def output_file(self) -> Path:
        """All output of the trainer."""
        return self.root / "output.log"

    @property
    def error_file(self) -> Path:
        """The exception that ended the attempt; the session writes it."""
        return self.root / "error.json"

    @property
    def modules_file(self) -> Path:
        """The modules that the trainer has loaded; the session writes it, the spare reads it."""
        return self.root / "modules.json"

    @property
    def stacks_file(self) -> Path:
        """The stacks of all threads when the supervisor considered the attempt hung."""
        return self.root / "stacks.txt"

    @property
    def exit_file(self) -> Path:
        """How the attempt ended; the supervisor writes it."""
        return self.root / "exit.json"

    def read_error(self) -> dict[str, Any] | None:
        """Return the content of error.json; None when it is missing or damaged."""
        try:
            content = read_record(
                self.error_file, "move it away", real_parents=real_parents_of(self.error_file)
            )
        except ConfigError:
            return None
        return None if content is None else checked_error(content)
