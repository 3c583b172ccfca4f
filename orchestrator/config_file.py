"""The file with the settings of runs: orchestrator.toml, or a table of pyproject.toml."""

import contextlib
import os
import reprlib
import stat
import tomllib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.rundir.ownership import group_that_may_write, stranger_behind, stranger_of
from orchestrator.system.regular_files import open_regular

CONFIG_FILE = "orchestrator.toml"
PROJECT_FILE = "pyproject.toml"
_TABLES = {CONFIG_FILE: (), PROJECT_FILE: ("tool", "orchestrator")}
MAXIMUM_FILE_BYTES = 1 << 20
# Of the parser, for which a millionth of this takes up to a quarter of a second.
MOST_STEPS = 10_000_000


@dataclass(frozen=True)
class TomlFile:
    """A file with settings, and who besides this user and root may have written it, if anybody."""

    text: str
    content: dict[str, Any]
    stranger: str | None

    def refuse_stranger(self, path: Path) -> None:
        """Refuse to use what others may have written. Raises ConfigError."""
        if self.stranger is not None:
            raise _refusal(path, self.stranger)


def read_config_file(
    directory: Path, known: Collection[str], repeated: Collection[str]
) -> tuple[dict[str, str], str]:
    """Return the settings in orchestrator.toml, or in pyproject.toml, and the file's name.

    The settings are those of the first file that has any, each as text, as on the command line;
    ``repeated`` names those that may be lists, whose text has a line for each value. Raises
    ConfigError, also for a setting that is not ``known``.
    """
    for path, file, content in _files_with_settings(directory):
        file.refuse_stranger(path)
        if not isinstance(content, dict):
            raise ConfigError(f"cannot use {path}: {'.'.join(_TABLES[path.name])} is not a table")
        values = {str(key).replace("-", "_"): _text(value) for key, value in content.items()}
        for key, value in content.items():
            texts = value if key in repeated and isinstance(value, list) else [value]
            # Another list, or a table, cannot be written on the command line.
            if not texts or not all(isinstance(text, str | int | float) for text in texts):
                shown = reprlib.repr(value)  # a nested value may be too deep to be written
                raise ConfigError(
                    f"cannot use {key} in {path.name} = {shown}: write a text or a number"
                )
        if unknown := sorted(values.keys() - set(known)):
            raise ConfigError(
                f"cannot use {path}: it sets {', '.join(unknown)}, "
                f"which is not a setting; the settings are {', '.join(sorted(known))}"
            )
        return values, path.name
    return {}, CONFIG_FILE


def others_who_may_set(directory: Path) -> str | None:
    """Return which group may change the settings in a directory, as a sentence; None if none may.

    Raises ConfigError when they cannot be read.
    """
    shared = {}
    for name in _TABLES:
        with contextlib.suppress(OSError):
            shared[name] = group_that_may_write((directory / name).stat())
    if not any(shared.values()):  # as nearly always: nothing is parsed a second time
        return None
    path = next((path for path, _, _ in _files_with_settings(directory)), None)
    if path is None or (group := shared.get(path.name)) is None:
        return None
    return (
        f"every member of the group {group} can change the settings in {path}, which run commands "
        "as you"
    )


def _files_with_settings(directory: Path) -> Iterator[tuple[Path, TomlFile, Any]]:
    """Yield each file that has settings, and these; the first one counts. Raises ConfigError."""
    for name, table in _TABLES.items():
        if (file := read_toml(directory / name)) is not None:
            content: Any = file.content
            for key in table:
                content = content.get(key, {}) if isinstance(content, dict) else {}
            if content:
                yield directory / name, file, content


def read_toml(path: Path) -> TomlFile | None:
    """Read a file of settings; return None if there is none. Raises ConfigError."""
    try:
        link = path.lstat()
        # What it leads to is not even opened.
        if stat.S_ISLNK(link.st_mode) and (placed_by := stranger_of(link)) is not None:
            raise _refusal(path, placed_by)
        text, stranger = _read_text(path)
        if _steps_for_keys(text) > MOST_STEPS:
            raise ValueError("it has too many keys of too many parts")
        return TomlFile(text, tomllib.loads(text), stranger)
    except FileNotFoundError:
        return None
    except RecursionError:
        raise ConfigError(f"cannot read {path}: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None


def _refusal(path: Path, stranger: str) -> ConfigError:
    return ConfigError(
        f"cannot use {path}: it may be written by {stranger}, and its settings run "
        f"commands as you; read it, and make it yours (`cp {path.name} own.toml && mv "
        f"own.toml {path.name}`), or start in another directory"
    )


def _read_text(path: Path) -> tuple[str, str | None]:
    """Return the content of a file, and who else may have written it. Raises OSError, ValueError.

    Anybody may put a file into a directory such as /tmp, a FIFO too.
    """
    with open(open_regular(path, os.O_RDONLY, follow_link=True), "rb") as file:
        facts = os.fstat(file.fileno())
        content = file.read(MAXIMUM_FILE_BYTES + 1)
    if len(content) > MAXIMUM_FILE_BYTES:
        raise ValueError(f"it has more than {MAXIMUM_FILE_BYTES} bytes")
    return content.decode(), stranger_behind(path, facts)


def _steps_for_keys(text: str) -> int:
    """Return about how many steps the parser takes for keys such as ``a.b.c``, at most.

    They grow with the square of the parts of a key, and for each line with those of the heading
    above. What is quoted is not told apart: a key's parts may be quoted too.
    """
    dots = [line.count(".") for line in text.split("\n")]
    return sum(count * count for count in dots) + max(dots) * len(dots)


def _text(value: object) -> str:
    """Return a value of a TOML file as it is written on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
