"""The file with the settings of runs: orchestrator.toml, or a table of pyproject.toml."""

import os
import stat
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.rundir.ownership import stranger_behind

CONFIG_FILE = "orchestrator.toml"
PROJECT_FILE = "pyproject.toml"
MAXIMUM_FILE_BYTES = 1 << 20


def read_config_file(
    directory: Path, known: Collection[str], repeated: Collection[str]
) -> tuple[dict[str, str], str]:
    """Return the settings in orchestrator.toml, or in pyproject.toml, and the file's name.

    The settings are those of the first file that has any, each as text, as on the command line;
    ``repeated`` names those that may be lists, whose text has a line for each value. Raises
    ConfigError, also for a setting that is not ``known``.
    """
    for name, table in ((CONFIG_FILE, ()), (PROJECT_FILE, ("tool", "orchestrator"))):
        path = directory / name
        try:
            text, stranger = _read_text(path)
            content: Any = tomllib.loads(text)
        except FileNotFoundError:
            continue
        except RecursionError:
            raise ConfigError(f"cannot read {path}: it is nested too deeply") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from None
        for key in table:
            content = content.get(key, {}) if isinstance(content, dict) else {}
        if not content:
            continue
        if stranger is not None:
            raise ConfigError(
                f"cannot use {path}: it may be written by {stranger}, and its settings run "
                f"commands as you; read it, and make it yours (`cp {name} own.toml && mv own.toml "
                f"{name}`), or start in another directory"
            )
        if not isinstance(content, dict):
            raise ConfigError(f"cannot use {path}: {'.'.join(table)} is not a table")
        values = {str(key).replace("-", "_"): _text(value) for key, value in content.items()}
        for key, value in content.items():
            texts = value if key in repeated and isinstance(value, list) else [value]
            # Another list, or a table, cannot be written on the command line.
            if not texts or not all(isinstance(text, str | int | float) for text in texts):
                raise ConfigError(f"cannot use {key} in {name} = {value}: write a text or a number")
        if unknown := sorted(values.keys() - set(known)):
            raise ConfigError(
                f"cannot use {path}: it sets {', '.join(unknown)}, "
                f"which is not a setting; the settings are {', '.join(sorted(known))}"
            )
        return values, name
    return {}, CONFIG_FILE


def _read_text(path: Path) -> tuple[str, str | None]:
    """Return the content of a file, and who else may have written it. Raises OSError, ValueError.

    Anybody may put a file into a directory such as /tmp, a FIFO too.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("it is not a regular file")
        content = file.read(MAXIMUM_FILE_BYTES + 1)
    if len(content) > MAXIMUM_FILE_BYTES:
        raise ValueError(f"it has more than {MAXIMUM_FILE_BYTES} bytes")
    return content.decode(), stranger_behind(path, facts)


def _text(value: object) -> str:
    """Return a value of a TOML file as it is written on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
