"""The one parser of JSON from outside: a caller sees a value or a ValueError, and nothing else."""

import json
from typing import Any

from orchestrator.system.text import storable

# Each bracket and each comma may stand for an object of a hundred bytes.
MOST_PARTS = 2_000_000


def parse_json(data: bytes | str, *, has_paths: bool = False, most_parts: int = MOST_PARTS) -> Any:
    """Return the value of a JSON text in UTF-8. Raises ValueError for anything else.

    Every text in it is made storable, unless it ``has_paths``: a lone surrogate stands for a byte
    of a path that is not UTF-8. More than ``most_parts`` brackets and commas are refused.
    """
    try:
        text = data.decode() if isinstance(data, bytes) else data
        if sum(map(text.count, "[{,")) > most_parts:
            raise ValueError("it has too many parts")
        value = json.loads(text)
        # Only an escape can bring in a NUL or a lone surrogate.
        return value if has_paths or "\\u" not in text else _storable(value)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_object(
    data: bytes | str, *, has_paths: bool = False, most_parts: int = MOST_PARTS
) -> dict[str, Any]:
    """Return the object of a JSON text, as ``parse_json`` does. Raises ValueError."""
    value = parse_json(data, has_paths=has_paths, most_parts=most_parts)
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
