"""The one parser of JSON from outside: a caller sees a value or a ValueError, and nothing else."""

import json
from typing import Any

from orchestrator.system.text import storable


def parse_json(data: bytes | str, *, has_paths: bool = False) -> Any:
    """Return the value of a JSON text in UTF-8. Raises ValueError for anything else.

    Every text in it is made storable, unless it ``has_paths``: a lone surrogate stands for a byte
    of a path that is not UTF-8.
    """
    try:
        text = data.decode() if isinstance(data, bytes) else data
        value = json.loads(text)
        # Only an escape can bring in a NUL or a lone surrogate.
        return value if has_paths or "\\u" not in text else _storable(value)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_object(data: bytes | str, *, has_paths: bool = False) -> dict[str, Any]:
    """Return the object of a JSON text, as ``parse_json`` does. Raises ValueError."""
    value = parse_json(data, has_paths=has_paths)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable(key): _storable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_storable(part) for part in value]
    return value
