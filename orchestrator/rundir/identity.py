"""The identity of a run: its id, and the program that it belongs to, in run.json."""

import contextlib
import os
import re
import secrets
from dataclasses import dataclass, replace
from typing import Any, Self, TypeGuard

from orchestrator.errors import ConfigError
from orchestrator.rundir.journal import utc_now
from orchestrator.rundir.paths import RunDir, name_of
from orchestrator.rundir.records import damaged_record, read_record
from orchestrator.rundir.start import Start
from orchestrator.system.durable import write_json
from orchestrator.system.recorded_command import recorded
from orchestrator.system.text import storable

FORMAT_VERSION = 1
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
ADVICE = "restore it, or move it away: the next start then makes it from the checkpoints"


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
        name = None if script is None else storable(name_of(script))
        program = None if start is None else _program_of(run, start)
        content = read_record(run.run_file, ADVICE)
        if content is None:
            new_id = checkpoint_run_id or secrets.token_hex(8)
            return cls(new_id, recorded(command), utc_now(), name, program)._begin(run)
        first = cls._of_record(run, content)
        if not accept_other:
            first._refuse_other(run, name, program)
        return first._with_program(run, name, program)

    def _begin(self, run: RunDir) -> Self:
        try:
            self._write(run)
        except OSError as error:
            raise ConfigError(f"cannot write {run.run_file}: {error.strerror}") from None
        return self

    @classmethod
    def _of_record(cls, run: RunDir, content: dict[str, Any]) -> Self:
        version, run_id = content.get("format_version"), content.get("run_id")
        if version not in (None, FORMAT_VERSION):
            raise ConfigError(
                f"cannot use {run.run_file}: its format version is {version!r}, and this program "
                f"reads only {FORMAT_VERSION}; use the program that wrote it"
            )
        words, program = content.get("command"), content.get("program")
        if version is None or not is_id(run_id) or not isinstance(words, list):
            problem = "format_version, run_id or command is missing or is none"
            raise damaged_record(run.run_file, problem, ADVICE)
        known = program if _is_program(program) else None
        return cls(run_id, words, str(content.get("created")), content.get("script"), known)

    def _refuse_other(self, run: RunDir, name: str | None, program: dict[str, Any] | None) -> None:
        then, now = self.program or {}, program or {}
        if None not in (name, self.script) and name != self.script:
            this, other = name, self.script
        elif _is_other_program(then, now):
            this, other = (p.get("path") or p.get("entry") for p in (now, then))
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


def is_id(value: Any) -> TypeGuard[str]:
    """Return whether a value is an id as this program and experiment trackers make them.

    Ids get into the environment of the script, and trackers make paths of them.
    """
    return isinstance(value, str) and _ID.fullmatch(value) is not None


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
        return not is_same and os.path.exists(then["path"])
    if then.get("path") or now.get("path"):
        return False
    entries = then.get("entry"), now.get("entry")
    return None not in entries and entries[0] != entries[1]
