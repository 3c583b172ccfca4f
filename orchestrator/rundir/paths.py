"""Every path in a run directory, and the identity of a run."""

import contextlib
import os
import re
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import ConfigError
from orchestrator.rundir.error_record import checked_error
from orchestrator.rundir.journal import utc_now
from orchestrator.rundir.ownership import refuse_unsafe
from orchestrator.rundir.start import Start
from orchestrator.system.durable import write_json
from orchestrator.system.json_input import parse_object
from orchestrator.system.recorded_command import recorded
from orchestrator.system.regular_files import read_regular
from orchestrator.system.text import storable

FORMAT_VERSION = 1
MAXIMUM_JSON_BYTES = 1 << 24
_ATTEMPT_NAME = re.compile(r"[0-9]{1,9}")
# Between a run directory and the files of an attempt there are attempts/ and 0001/.
REAL_PARENTS = 2
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
        names = [name for name, kind in vars(RunDir).items() if isinstance(kind, property)]
        paths: list[Path] = [getattr(self, name) for name in names if name != "all_paths"]
        return [self.root, *paths, self.checkpoints / "step-000000000000", self.attempt(1).root]

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
                "name a writable directory with --run-dir"
            ) from None
        if not os.access(self.root, os.W_OK) or not os.access(self.checkpoints, os.W_OK):
            raise ConfigError(
                f"cannot write to the run directory {self.root}; "
                "fix its permissions or name another with --run-dir"
            )
        refuse_unsafe([self.root, self.checkpoints, self.attempts])

    def read_done(self) -> dict[str, Any] | None:
        """Return the content of done.json; None while the training is not complete.

        Raises ConfigError when the file is damaged or cannot be read.
        """
        return _read_json(
            self.done_file,
            "move it away to continue the run from its newest checkpoint if there is more to train",
        )


def default_run_dir(script: str) -> Path:
    """Return ``runs/<name>`` for the path of a script or a program."""
    return DEFAULT_PARENT / _name_of(script)


def _name_of(script: str) -> str:
    """Return the name of a script, by which supervised and standalone sessions share one run."""
    path = Path(script)
    name = path.parent.name if path.stem == "__main__" else path.stem
    return name or "run"


@dataclass(frozen=True)
class AttemptDir:
    """The paths of the records about one attempt."""

    root: Path

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
            content = _read_json(self.error_file, "move it away", real_parents=REAL_PARENTS)
        except ConfigError:
            return None
        return None if content is None else checked_error(content)


@dataclass(frozen=True)
class RunIdentity:
    """The content of run.json."""

    run_id: str
    command: list[str]
    created: str
    script: str | None = None
    program: dict[str, Any] | None = None
    """The script's path, also from the run directory, the module, and the working directory."""

    @classmethod
    def open(
        cls,
        run: RunDir,
        command: list[str],
        checkpoint_run_id: str | None = None,
        script: str | None = None,
        start: Start | None = None,
        *,
        accept_other: bool = False,
    ) -> Self:
        """Read run.json, or write it for a new run.

        ``checkpoint_run_id`` is the id in the existing checkpoints, for a run whose run.json was
        lost; ``script`` is the path of the script that is about to train, and ``start`` how it
        was started. Raises ConfigError when run.json is damaged or belongs to another script,
        since guessing would mix runs; with ``accept_other`` the run becomes that of this script.
        """
        advice = "restore it, or move it away: the next start then makes it from the checkpoints"
        name = None if script is None else storable(_name_of(script))
        program = None if start is None else _program_of(run, start)
        content = _read_json(run.run_file, advice)
        if content is None:
            new_id = checkpoint_run_id or secrets.token_hex(8)
            identity = cls(new_id, recorded(command), utc_now(), name, program)
            try:
                identity._write(run)
            except OSError as error:
                raise ConfigError(f"cannot write {run.run_file}: {error.strerror}") from None
            return identity
        if content.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
            raise ConfigError(
                f"cannot use {run.run_file}: its format version is "
                f"{content['format_version']!r}, and this program reads only {FORMAT_VERSION}; "
                "use the program that wrote it"
            )
        version, run_id = content.get("format_version"), content.get("run_id")
        words = content.get("command")
        if version is None or not isinstance(run_id, str) or not isinstance(words, list):
            raise _damaged(
                run.run_file,
                "format_version, run_id or command is missing or has the wrong type",
                advice,
            )
        known = content.get("program")
        first = cls(
            run_id,
            words,
            str(content.get("created")),
            content.get("script"),
            known if _is_program(known) else None,
        )
        if not accept_other:
            first._refuse_other(run, name, program)
        return first._with_program(run, name, program)

    def _refuse_other(self, run: RunDir, name: str | None, program: dict[str, Any] | None) -> None:
        then, now = self.program or {}, program or {}
        if None not in (name, self.script) and name != self.script:
            this, other = name, self.script
        elif _is_other_program(then, now):
            this, other = (p["path"] or p["entry"] for p in (now, then))
        else:
            return
        raise ConfigError(
            f"cannot train {this} in {run.root}: it contains the run of {other}, and {this} "
            "would resume from its checkpoints; name another directory with --run-dir (without a "
            "supervisor: ORCHESTRATOR_RUN_DIR or Session(run_dir=...)), or, if this is the same "
            "script in another place or with another name, add --continue (without a supervisor: "
            "ORCHESTRATOR_CONTINUE=on)"
        )

    def _with_program(self, run: RunDir, name: str | None, program: dict[str, Any] | None) -> Self:
        """Return the identity with the script as it is named and placed now, and record that."""
        if program is None or (self.program == program and name in (None, self.script)):
            return self
        current = replace(self, script=name or self.script, program=program)
        with contextlib.suppress(OSError):  # the next start compares with the earlier place
            current._write(run)
        return current

    def _write(self, run: RunDir) -> None:
        content = {"format_version": FORMAT_VERSION, **self.__dict__}
        if self.program is None:
            del content["program"]
        write_json(run.run_file, content)


def _program_of(run: RunDir, start: Start) -> dict[str, Any]:
    """Return what run.json keeps of a start, by which two scripts of one name are told apart."""
    place = start.script or start.directory
    return {
        "path": None if start.script is None else storable(start.script),
        "entry": start.entry,
        "directory": storable(start.directory),
        "from_run": storable(os.path.relpath(place, run.root.resolve())),
    }


def _is_program(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(part, str | None) for part in content.values()
    )


def _is_other_program(then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Return whether two records name different programs.

    A project that was moved together with its run has the same path from there; one that was
    moved away from it has left nothing at the old place.
    """
    if then.get("path") and now.get("path"):
        is_same = then["path"] == now["path"] or then.get("from_run") == now["from_run"]
        return not is_same and os.path.exists(then["path"])  # for any text, unlike Path.exists
    if then.get("path") or now.get("path"):
        return False
    entries = then.get("entry"), now.get("entry")
    return None not in entries and entries[0] != entries[1]


def _read_json(path: Path, advice: str, *, real_parents: int = 0) -> dict[str, Any] | None:
    try:
        content = parse_object(read_regular(path, MAXIMUM_JSON_BYTES, real_parents=real_parents))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise _damaged(path, str(error), advice) from None
    return content


def _damaged(path: Path, problem: str, advice: str) -> ConfigError:
    return ConfigError(f"cannot use {path}: it is damaged ({problem}); {advice}")
