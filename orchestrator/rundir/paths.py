"""The run directory: every path name in it, and its identity."""

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import ConfigError
from orchestrator.rundir.journal import utc_now
from orchestrator.system.durable import write_json

FORMAT_VERSION = 1
DEFAULT_PARENT = Path("runs")


@dataclass(frozen=True)
class RunDir:
    """Names of everything that a run keeps on disk (docs/reference/checkpoint-format.md)."""

    root: Path

    @property
    def run_file(self) -> Path:
        """Identity of the run."""
        return self.root / "run.json"

    @property
    def lock_file(self) -> Path:
        """Held with flock by the supervisor and the trainer."""
        return self.root / "lock"

    @property
    def journal_file(self) -> Path:
        """What happened, one JSON object a line."""
        return self.root / "journal.jsonl"

    @property
    def metrics_file(self) -> Path:
        """The metrics of the run's steps, one JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def tracking_file(self) -> Path:
        """The runs that belong to this one in trackers that choose their ids themselves."""
        return self.root / "tracking.json"

    @property
    def log_file(self) -> Path:
        """What supervisors have said, one JSON object a line."""
        return self.root / "supervisor.log"

    @property
    def attempts(self) -> Path:
        """The records of each life of the trainer, one directory each."""
        return self.root / "attempts"

    @property
    def checkpoints(self) -> Path:
        """Published checkpoints, one directory each."""
        return self.root / "checkpoints"

    @property
    def quarantine(self) -> Path:
        """What failed verification."""
        return self.checkpoints / "quarantine"

    @property
    def done_file(self) -> Path:
        """Exists only when training is complete."""
        return self.root / "done.json"

    @property
    def requeue_file(self) -> Path:
        """Exists when a SLURM job should be queued again and we could not see to that."""
        return self.root / "requeue.json"

    @property
    def reserve_file(self) -> Path:
        """Disk space that an emergency save may use up."""
        return self.root / "reserve"

    @property
    def written_file(self) -> Path:
        """What an adopted script was seen writing and is no checkpoint yet."""
        return self.root / "written.json"

    @property
    def own(self) -> list[Path]:
        """The directory and all that we keep in it, with one checkpoint and one attempt."""
        names = [name for name, kind in vars(RunDir).items() if isinstance(kind, property)]
        files: list[Path] = [getattr(self, name) for name in names if name != "own"]
        return [self.root, *files, self.checkpoints / "step-000000000000", self.attempt(1).root]

    def attempt(self, number: int) -> "AttemptDir":
        """The records of one life of the trainer, counted from 1."""
        return AttemptDir(self.attempts / f"{number:04d}")

    def create(self) -> None:
        """Make the directories. Raises ConfigError when the place cannot hold a run."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.attempts.mkdir(exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(
                f"cannot use {self.root} as the run directory: it is a file, or is below one; "
                "name a directory with --run-dir"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"cannot create the run directory {self.root}: {error.strerror}; "
                "name a writable place with --run-dir"
            ) from None
        if not os.access(self.root, os.W_OK) or not os.access(self.checkpoints, os.W_OK):
            raise ConfigError(
                f"cannot write to the run directory {self.root}; "
                "fix its permissions or name another with --run-dir"
            )

    def done(self) -> dict[str, Any] | None:
        """The content of done.json, or None while training is not complete."""
        return _read_json(
            self.done_file,
            "move it away: the run then goes on from its newest checkpoint, if there is more to do",
        )


def default_run_dir(script: str) -> Path:
    """``runs/<name>`` under the current directory, for the path of a script or of a program."""
    return DEFAULT_PARENT / _name_of(script)


def _name_of(script: str) -> str:
    """The same whether the script is supervised or not, so that both continue the same run."""
    path = Path(script)
    name = path.parent.name if path.stem == "__main__" else path.stem
    return name or "run"


@dataclass(frozen=True)
class AttemptDir:
    """Names of what is recorded about one attempt."""

    root: Path

    @property
    def output_file(self) -> Path:
        """Everything the trainer printed."""
        return self.root / "output.log"

    @property
    def error_file(self) -> Path:
        """The exception that ended the attempt, written by the session."""
        return self.root / "error.json"

    @property
    def modules_file(self) -> Path:
        """The modules that the trainer has loaded, for the spare; written by the session."""
        return self.root / "modules.json"

    @property
    def stacks_file(self) -> Path:
        """What every thread did when the attempt was taken for hung, written by the supervisor."""
        return self.root / "stacks.txt"

    @property
    def exit_file(self) -> Path:
        """How the attempt ended, written by the supervisor."""
        return self.root / "exit.json"

    def error(self) -> dict[str, Any] | None:
        """The content of error.json; None when there is none or it is damaged."""
        try:
            return _read_json(self.error_file, "move it away")
        except ConfigError:
            return None


@dataclass(frozen=True)
class RunIdentity:
    """The content of run.json."""

    run_id: str
    command: list[str]
    created: str
    script: str | None = None

    @classmethod
    def open(
        cls,
        run: RunDir,
        command: list[str],
        adopted_id: str | None = None,
        script: str | None = None,
    ) -> Self:
        """Read run.json, or write it for a new run.

        ``adopted_id`` is the id that existing checkpoints carry, for a run whose run.json was lost;
        ``script`` the path of what is about to train in it. Raises ConfigError when run.json is
        damaged, or when it is another script's: guessing would mix runs.
        """
        advice = "restore it, or move it away: the next start then makes it from the checkpoints"
        name = None if script is None else _name_of(script)
        content = _read_json(run.run_file, advice)
        if content is None:
            identity = cls(adopted_id or secrets.token_hex(8), command, utc_now(), name)
            try:
                write_json(run.run_file, {"format_version": FORMAT_VERSION, **identity.__dict__})
            except OSError as error:
                raise ConfigError(f"cannot write {run.run_file}: {error.strerror}") from None
            return identity
        if content.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
            raise ConfigError(
                f"cannot use {run.run_file}: its format version is "
                f"{content['format_version']!r}, this program knows {FORMAT_VERSION}; "
                "use the program that made it"
            )
        version, run_id = content.get("format_version"), content.get("run_id")
        recorded = content.get("command")
        if version is None or not isinstance(run_id, str) or not isinstance(recorded, list):
            raise _damaged(
                run.run_file,
                "format_version, run_id or command is missing or of a wrong kind",
                advice,
            )
        first = content.get("script")
        if None not in (name, first) and name != first:
            raise ConfigError(
                f"cannot train {name} in {run.root}: that is the run of {first}, whose checkpoints "
                "would be resumed from; name another with --run-dir, or, where the script was only "
                f"renamed, move {run.run_file} away"
            )
        return cls(run_id, recorded, str(content.get("created")), first)


def _read_json(path: Path, advice: str) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error), advice) from None
    if not isinstance(content, dict):
        raise _damaged(path, "it is not an object", advice)
    return content


def _damaged(path: Path, problem: str, advice: str) -> ConfigError:
    return ConfigError(f"cannot use {path}: it is damaged ({problem}); {advice}")
