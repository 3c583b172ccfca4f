"""Writes settings into orchestrator.toml, whose other lines stay as they are."""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.config_file import CONFIG_FILE, PROJECT_FILE, read_toml
from orchestrator.errors import ConfigError
from orchestrator.system.durable import replace_file


def write_settings(settings: Mapping[str, str], directory: Path) -> Path:
    """Set these texts in the directory's orchestrator.toml, and return its path.

    A text of several lines becomes a list.
    Raises ConfigError where the file cannot be read or written, or has lines that would change,
    where others may have written it, and where the project's settings are in pyproject.toml, which
    a new file would hide.
    """
    path = directory / CONFIG_FILE
    lines = [f"{name} = {_quoted(text)}" for name, text in settings.items()]
    advice = "; write into it yourself:\n" + "\n".join(lines)
    try:
        old, before = _settings_of_user(path)
        if not before and _has_settings(directory / PROJECT_FILE):
            raise ConfigError(
                f"cannot write {path}, since it would hide the settings of {PROJECT_FILE}"
            )
        new = old
        for name, line in zip(settings, lines, strict=True):
            new = _with_line(new, name, line)
        wanted = {name: _values(text) for name, text in settings.items()}
        if _named(tomllib.loads(new)) != before | wanted:
            raise ConfigError(f"cannot change {path} line by line")
        replace_file(path, new.encode())
    except ConfigError as error:
        raise ConfigError(f"{error}{advice}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {path}: {error}{advice}") from None
    return path


def _settings_of_user(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text and the settings of a file, which become this user's own with the new file.

    Raises ConfigError, also where another user may have written them since the look began.
    """
    if (file := read_toml(path)) is None:
        return "", {}
    file.refuse_stranger(path)
    return file.text, _named(file.content)


def _has_settings(project_file: Path) -> bool:
    file = read_toml(project_file)
    tools = {} if file is None else file.content.get("tool", {})
    return isinstance(tools, dict) and "orchestrator" in tools


def _named(content: dict[str, Any]) -> dict[str, Any]:
    """Return settings with underscores in their names."""
    return {name.replace("-", "_"): value for name, value in content.items()}


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
