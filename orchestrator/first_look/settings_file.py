"""Writes settings into orchestrator.toml, whose other lines stay as they are."""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.config_file import CONFIG_FILE, PROJECT_FILE
from orchestrator.errors import ConfigError
from orchestrator.system.durable import replace_file


def write_settings(settings: Mapping[str, str], directory: Path) -> Path:
    """Set these texts in the directory's orchestrator.toml, and return its path.

    A text of several lines becomes a list.
    Raises ConfigError where the file cannot be read or written, or has lines that would change, and
    where the project's settings are in pyproject.toml, which a new file would hide.
    """
    path = directory / CONFIG_FILE
    lines = [f"{name} = {_quoted(text)}" for name, text in settings.items()]
    advice = "; write into it yourself:\n" + "\n".join(lines)
    try:
        old = _read(path)
        before = _parse(old)
        if not before and "orchestrator" in _parse(_read(directory / PROJECT_FILE)).get("tool", {}):
            raise ConfigError(
                f"cannot write {path}, since it would hide the settings of {PROJECT_FILE}" + advice
            )
        new = old
        for name, line in zip(settings, lines, strict=True):
            new = _with_line(new, name, line)
        wanted = {name: _values(text) for name, text in settings.items()}
        if _parse(new) != before | wanted:
            raise ConfigError(f"cannot change {path} line by line" + advice)
        replace_file(path, new.encode())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {path}: {error}{advice}") from None
    return path


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _parse(text: str) -> dict[str, Any]:
    """Return the settings with underscores in their names. Raises ValueError."""
    return {name.replace("-", "_"): value for name, value in tomllib.loads(text).items()}


def _with_line(text: str, name: str, line: str) -> str:
    """Return the text with the setting's line replaced, or added at the end."""
    old = re.compile(rf"^[ \t]*{name.replace('_', '[-_]')}[ \t]*=.*$", re.MULTILINE)
    if old.search(text):
        return old.sub(lambda _: line, text, count=1)
    joint = "\n" if text and not text.endswith("\n") else ""
    return f"{text}{joint}{line}\n"


def _values(text: str) -> str | list[str]:
    return text.split("\n") if "\n" in text else text


def _quoted(text: str) -> str:
    """Return a text as TOML writes it: as it is, where that is possible; lines as a list."""
    if isinstance(values := _values(text), list):
        return f"[{', '.join(map(_quoted, values))}]"
    is_plain = "'" not in text and text.isprintable()
    return f"'{text}'" if is_plain else json.dumps(text)
