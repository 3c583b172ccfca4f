"""How a training was started: its program, its arguments, its configuration files, its sources."""

import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import ConfigError
from orchestrator.rundir.program import (
    DIRECTORY_AT_IMPORT,
    code_from_input,
    existing_file,
    file_at_input,
    is_notebook,
    notebook_path,
    path_of_program,
    position_of_program,
)
from orchestrator.rundir.sources import configuration_of, git_state, short_digest
from orchestrator.system.python_command import reads_program_from_input
from orchestrator.system.recorded_command import recorded
from orchestrator.system.text import storable

MAXIMUM_RECORDED_BYTES = 64 << 10
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)


@dataclass(frozen=True)
class Start:
    """How a training was started.

    Attributes:
        command: The words of the command, or ``sys.orig_argv`` without a supervisor.
        arguments: The words behind the script or module, with the variables that ``env`` sets.
        directory: The working directory.
        script: The resolved path of the script, module or notebook; None where it is no file.
        entry: ``-m MODULE``, or ``-c`` or ``-`` with a digest of the code; None for a script.
        configuration: The digest of each configuration file that the command names.
        git: ``revision`` and ``dirty`` of the script's repository; None outside of one.
    """

    command: list[str]
    arguments: list[str]
    directory: str
    script: str | None = None
    entry: str | None = None
    configuration: dict[str, str] = field(default_factory=dict)
    git: dict[str, Any] | None = None

    @classmethod
    def of_command(cls, command: list[str]) -> Self:
        """Describe a command that a supervisor is about to start in this directory.

        Raises ConfigError when it reads its program from standard input, which a second attempt
        could not read again.
        """
        if reads_program_from_input(command):
            raise ConfigError(
                f"cannot run {' '.join(command)}: it reads its program from standard input, which "
                "a restart would find at its end; write the program to a file and name that"
            )
        position = position_of_program(command)
        script, entry = path_of_program(command, position), None
        if position is None:
            arguments = command[1:]
        else:
            before = [w for w in command[1:position] if _ASSIGNMENT.fullmatch(w)]
            arguments = before + command[position + 1 :]
            if position and command[position - 1] == "-m":
                entry = f"-m {command[position]}"
            elif position and command[position - 1] == "-c":
                entry = f"-c {short_digest(command[position].encode())}"
        return cls._of(command, arguments, script, entry)

    @classmethod
    def of_process(cls) -> Self:
        """Describe this process, which trains without a supervisor."""
        main = sys.modules["__main__"]
        name, script, entry = sys.argv[0] if sys.argv else "", None, None
        spec = getattr(main, "__spec__", None)
        if is_notebook():
            notebook = notebook_path()
            return cls._of([str(notebook or "notebook")], [], notebook, None)
        if name == "-c":
            words = sys.orig_argv
            code = words[words.index("-c") + 1] if "-c" in words[:-1] else ""
            entry = f"-c {short_digest(code.encode())}"
        elif name in ("-", ""):
            script = file_at_input()
            entry = None if script else code_from_input()
        else:
            script = existing_file(Path(getattr(main, "__file__", None) or name))
            # A launcher that has replaced sys.argv names the script there.
            script = existing_file(DIRECTORY_AT_IMPORT / name) or script
            if spec is not None and spec.name != "__main__" and script is not None:
                entry = f"-m {spec.name.removesuffix('.__main__')}"
        return cls._of(list(sys.orig_argv), sys.argv[1:], script, entry)

    @classmethod
    def _of(
        cls, command: list[str], arguments: list[str], script: Path | None, entry: str | None
    ) -> Self:
        directory = Path.cwd()
        return cls(
            command=command,
            arguments=arguments,
            directory=str(directory),
            script=None if script is None else str(script),
            entry=entry,
            configuration=configuration_of(command, script),
            git=git_state(script.parent if script else directory),
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any] | None) -> Self | None:
        """Return what ``to_json`` has made; None where that is absent or of another form."""
        if content is None:
            return None
        try:
            start = cls(**content)
        except TypeError:
            return None
        words = [start.command, start.arguments]
        is_readable = all(
            isinstance(part, list) and all(isinstance(word, str) for word in part) for part in words
        )
        is_readable = is_readable and isinstance(start.configuration, dict)
        is_readable = is_readable and isinstance(start.directory, str)
        is_readable = is_readable and isinstance(start.script, str | None)
        is_readable = is_readable and isinstance(start.git, dict | None)
        return (
            start
            if is_readable and isinstance((start.git or {}).get("revision"), str | None)
            else None
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object as the manifests and done.json keep it.

        It is cut to a bounded size, without secrets, and without what JSON cannot store.
        """
        return asdict(self._recorded())

    def _recorded(self) -> Self:
        return replace(
            self,
            command=_bounded(recorded(self.command)),
            arguments=_bounded(recorded(self.arguments)),
            directory=storable(self.directory),
            script=None if self.script is None else storable(self.script),
            configuration={storable(name): value for name, value in self.configuration.items()},
        )

    def differences_from(self, earlier: "Start") -> list[str]:
        """Return what differs, a line each, old and new side by side; empty where nothing does.

        The recorded forms are compared: a new value of a secret is no difference.
        """
        return self._recorded()._differences_from(earlier._recorded())

    def _differences_from(self, earlier: "Start") -> list[str]:
        lines = []
        if self.arguments != earlier.arguments:
            lines += [
                f"arguments then: {shown(earlier.arguments)}",
                f"arguments now:  {shown(self.arguments)}",
            ]
        for name in sorted({*self.configuration} & {*earlier.configuration}):
            if self.configuration[name] != earlier.configuration[name]:
                lines.append(f"{name} has other content than then")
        if self.script and earlier.script and self.script != earlier.script:
            lines.append(f"script then: {earlier.script}, now: {self.script}")
        elif self.directory != earlier.directory:
            lines.append(f"working directory then: {earlier.directory}, now: {self.directory}")
        then, now = earlier.git or {}, self.git or {}
        if then.get("revision") != now.get("revision") and then and now:
            lines.append(f"git revision then: {_shown_git(then)}, now: {_shown_git(now)}")
        return lines


OTHER_EXPERIMENT = (
    "for another experiment use another run directory, such as --run-dir 'runs/{name}-{args}'"
)


def shown(arguments: list[str]) -> str:
    """Return arguments as a person reads them."""
    return " ".join(arguments) or "(none)"


def _shown_git(state: Mapping[str, Any]) -> str:
    return str(state.get("revision"))[:12] + (" with changes" if state.get("dirty") else "")


def _bounded(words: list[str]) -> list[str]:
    """Return words that a manifest has room for: long lists become a digest."""
    if sum(map(len, words)) <= MAXIMUM_RECORDED_BYTES:
        return words
    text = "\0".join(words).encode(errors="surrogateescape")
    return [*words[:1], f"... {len(words)} words, digest {short_digest(text)}"]
