"""Reads the JSON records of a run, and says what to do about a damaged one."""

from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.system.json_input import parse_object
from orchestrator.system.regular_files import read_regular

MAXIMUM_JSON_BYTES = 1 << 24


def read_record(path: Path, advice: str, *, real_parents: int = 0) -> dict[str, Any] | None:
    """Return the object in a file; None if there is no file.

    Raises ConfigError, with the ``advice``, for a file that cannot be read or is damaged.
    """
    try:
        content = parse_object(read_regular(path, MAXIMUM_JSON_BYTES, real_parents=real_parents))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise damaged_record(path, str(error), advice) from None
    return content


def damaged_record(path: Path, problem: str, advice: str) -> ConfigError:
    """Return the error for a record that is damaged."""
    return ConfigError(f"cannot use {path}: it is damaged ({problem}); {advice}")
