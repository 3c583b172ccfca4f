"""The pattern of a run directory, in which {name} and {args} stand for those of the command."""

import hashlib
import re
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.rundir.paths import default_run_dir
from orchestrator.rundir.start import Start
from orchestrator.system.recorded_command import recorded

MAXIMUM_ARGS_CHARACTERS = 100
_FIELD = re.compile(r"\{(\w*)\}")
_OPTION = re.compile(r"--?(?=[A-Za-z])")
_UNSAFE = re.compile(r"[^A-Za-z0-9._=+-]+")


def run_dir_of(pattern: Path | None, script: str, start: Start) -> Path:
    """Return the run directory of a start: the expanded pattern, or the default.

    ``script`` names the run. Raises ConfigError for a pattern with an unknown name in braces.
    """
    default = default_run_dir(script)
    return default if pattern is None else expand(pattern, default.name, start.arguments)


def expand(pattern: Path, name: str, arguments: list[str]) -> Path:
    """Return the directory for a command, such as ``runs/train-lr=1e-3`` for runs/{name}-{args}.

    Raises ConfigError for another name in braces.
    """
    # A secret neither shows in the name nor changes it.
    values = {"name": name, "args": _args_text(recorded(arguments))}

    def value_of(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ConfigError(
                f"cannot use --run-dir = {pattern}: {match[0]} is not known; write {{name}} for "
                "the script's name and {args} for the arguments"
            )
        return values[match[1]]

    return Path(_FIELD.sub(value_of, str(pattern)))


def _args_text(arguments: list[str]) -> str:
    """Return a name for these arguments: different arguments get different names."""
    parts: list[str] = []
    takes_value = False
    for word in arguments:
        is_option = _OPTION.match(word) is not None
        if takes_value and not is_option:
            parts[-1] += f"={word}"
        else:
            parts.append(_OPTION.sub("", word, count=1))
        takes_value = is_option and "=" not in word
    whole = ",".join(parts)
    text = ",".join(_UNSAFE.sub("_", part) for part in parts)[:MAXIMUM_ARGS_CHARACTERS]
    if text != whole or not text.strip("."):  # a word of dots would lead to another directory
        text += "-" + hashlib.sha256("\0".join(arguments).encode()).hexdigest()[:8]
    return text if parts else "no-args"
