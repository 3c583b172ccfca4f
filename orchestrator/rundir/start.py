"""How a training was started: its program, its arguments, its configuration files, its sources."""

import contextlib
import hashlib
import marshal
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import ConfigError
from orchestrator.system.recorded_command import recorded
from orchestrator.system.text import storable

CONFIGURATION_SUFFIXES = frozenset(
    {".yaml", ".yml", ".json", ".jsonnet", ".toml", ".ini", ".cfg", ".conf", ".gin", ".py"}
)
MAXIMUM_CONFIGURATION_BYTES = 4 << 20
MAXIMUM_RECORDED_BYTES = 64 << 10
DIGEST_CHARACTERS = 16
GIT_SECONDS = 2.0
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_INTERPRETER = re.compile(r"python(\d+(\.\d+)*)?")
_DIRECTORY_AT_IMPORT = Path.cwd()


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
        if _reads_program_from_input(command):
            raise ConfigError(
                f"cannot run {' '.join(command)}: it reads its program from standard input, which "
                "a restart would find at its end; write the program to a file and name that"
            )
        position = _position_of_program(command)
        script, entry = _path_of(command, position), None
        if position is None:
            arguments = command[1:]
        else:
            before = [w for w in command[1:position] if _ASSIGNMENT.fullmatch(w)]
            arguments = before + command[position + 1 :]
            if position and command[position - 1] == "-m":
                entry = f"-m {command[position]}"
            elif position and command[position - 1] == "-c":
                entry = f"-c {_digest(command[position].encode())}"
        return cls._of(command, arguments, script, entry)

    @classmethod
    def of_process(cls) -> Self:
        """Describe this process, which trains without a supervisor."""
        main = sys.modules["__main__"]
        name, script, entry = sys.argv[0] if sys.argv else "", None, None
        spec = getattr(main, "__spec__", None)
        if is_notebook():
            notebook = _notebook_path()
            return cls._of([str(notebook or "notebook")], [], notebook, None)
        if name == "-c":
            words = sys.orig_argv
            code = words[words.index("-c") + 1] if "-c" in words[:-1] else ""
            entry = f"-c {_digest(code.encode())}"
        elif name in ("-", ""):
            script = _file_at_input()
            entry = None if script else _code_from_input()
        else:
            script = _existing(Path(getattr(main, "__file__", None) or name))
            # A launcher that has replaced sys.argv names the script there.
            script = _existing(_DIRECTORY_AT_IMPORT / name) or script
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
            configuration=_configuration_of(command, script),
            git=_git_state(script.parent if script else directory),
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
        return start if is_readable and isinstance(start.git, dict | None) else None

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


def script_of(command: list[str]) -> str | None:
    """Return what names the run: the first word that is a file, else the module of ``-m``.

    A file after ``-m`` is more likely data for that module, unless the module starts it as a
    script.
    """
    position = _position_of_program(command)
    if position is None or (position and command[position - 1] == "-c"):
        return None
    word = command[position]
    return word.rpartition(".")[2] if position and command[position - 1] == "-m" else word


def is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    return "ipykernel" in sys.modules and "ipykernel" in Path(sys.argv[0]).as_posix()


def has_changed_directory() -> bool:
    """Return whether the script has left the directory in which it imported this package."""
    return Path.cwd() != _DIRECTORY_AT_IMPORT


def _position_of_program(command: list[str]) -> int | None:
    """Return the index of the word that is the script, the module, or the code of ``-c``."""
    if _is_own_program(command[0]):
        return 0
    modules: list[int] = []
    for index, word in enumerate(command[1:], start=1):
        has_next = index + 1 < len(command)
        if word == "-m" and has_next:
            modules.append(index + 1)
            if _module_file(command[index + 1]) is not None:
                return index + 1
        elif word == "-c" and has_next and not modules:
            return index + 1
        elif (
            (not modules or word.endswith(".py"))
            and Path(word).is_file()
            and not Path(word).name.startswith("python")
        ):
            return index
    return modules[0] if modules else None


def _is_own_program(program: str) -> bool:
    """Return whether a program is a script of the user's, not one that is installed."""
    path = Path(program)
    if "/" not in program or path.resolve().parent.name in ("bin", "sbin", "Scripts"):
        return False
    if path.parent.name in ("bin", "sbin", "Scripts"):
        return False
    with contextlib.suppress(OSError):
        # What PATH finds is installed, a shim of pyenv too, which is a shell script.
        found = shutil.which(path.name)
        if found is None or not path.samefile(found):
            with open(path, "rb") as file:
                return file.read(2) == b"#!"
    return False


def _path_of(command: list[str], position: int | None) -> Path | None:
    if position is None or (position and command[position - 1] == "-c"):
        return None
    if position and command[position - 1] == "-m":
        return _module_file(command[position])
    return _existing(Path(command[position]))


def _module_file(module: str) -> Path | None:
    """Return the file of a module below the working directory or PYTHONPATH."""
    below = Path(*module.split("."))
    roots = [".", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    for root in map(Path, roots):
        for path in (root / below / "__main__.py", root / below.with_name(f"{below.name}.py")):
            if path.is_file():
                return path.resolve()
    return None


def _existing(path: Path) -> Path | None:
    return path.resolve() if path.is_file() else None


def _reads_program_from_input(command: list[str]) -> bool:
    if not _INTERPRETER.fullmatch(Path(command[0]).name):
        return False
    words = command[1:]
    while words and re.fullmatch(r"-[bBdEIOPqRsSuv]+", words[0]):
        words = words[1:]
    return not words or words[0] in ("-", "/dev/stdin")


def _file_at_input() -> Path | None:
    """Return the file that standard input was redirected from."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(0).st_mode):
            return _existing(Path("/proc/self/fd/0").readlink())
    return None


def _code_from_input() -> str | None:
    """Return a digest of the program on standard input, which this call is a part of."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
    code = frame.f_code
    is_whole = code.co_filename == "<stdin>" and not os.isatty(0)
    return f"- {_digest(marshal.dumps(code))}" if is_whole else None


def _notebook_path() -> Path | None:
    main = vars(sys.modules["__main__"])
    name = main.get("__vsc_ipynb_file__") or os.environ.get("JPY_SESSION_NAME")
    return None if not name else (_DIRECTORY_AT_IMPORT / str(name)).resolve()


def _configuration_of(command: list[str], script: Path | None) -> dict[str, str]:
    digests = {}
    for word in command[1:]:
        name = word.rpartition("=")[2] if word.startswith("-") else word.removeprefix("@")
        path = Path(name)
        with contextlib.suppress(OSError, ValueError):
            if path.suffix.lower() not in CONFIGURATION_SUFFIXES or not path.is_file():
                continue
            if path.resolve() != script and path.stat().st_size <= MAXIMUM_CONFIGURATION_BYTES:
                digests[name] = _digest(path.read_bytes())
    return digests


def _git_state(directory: Path) -> dict[str, Any] | None:
    try:
        revision = _git(directory, "rev-parse", "HEAD").strip()
        changes = _git(directory, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"revision": revision, "dirty": bool(changes.strip())}


def _git(directory: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(directory), *words],
        capture_output=True,
        check=True,
        text=True,
        timeout=GIT_SECONDS,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    ).stdout


def _shown_git(state: Mapping[str, Any]) -> str:
    return str(state.get("revision"))[:12] + (" with changes" if state.get("dirty") else "")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGEST_CHARACTERS]


def _bounded(words: list[str]) -> list[str]:
    """Return words that a manifest has room for: long lists become a digest."""
    if sum(map(len, words)) <= MAXIMUM_RECORDED_BYTES:
        return words
    text = "\0".join(words).encode(errors="surrogateescape")
    return [*words[:1], f"... {len(words)} words, digest {_digest(text)}"]
