"""The one parser of JSON from outside: bounded, and with every text in it storable.

Whatever the bytes are, a caller sees a value or a ValueError.
"""

import json
from typing import Any, TypeVar

from orchestrator.system.text import storable

T = TypeVar("T")


def parse_json(data: bytes | str) -> Any:
    """Return the value of a JSON text in UTF-8. Raises ValueError for anything else."""
    try:
        text = data.decode() if isinstance(data, bytes) else data
        value = json.loads(text)
        # Only an escape can bring in a NUL or a lone surrogate.
        return _storable(value) if "\\u" in text or not text.isascii() else value
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_object(data: bytes | str) -> dict[str, Any]:
    """Return the object of a JSON text. Raises ValueError for any other value."""
    value = parse_json(data)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def typed(content: dict[str, Any], key: str, kind: type[T], default: T) -> T:
    """Return ``content[key]`` if it has exactly this type, else the default.

    A bool is no int here, and an int is a float.
    """
    value = content.get(key)
    if kind is float and type(value) is int and abs(value) < 1 << 63:
        value = float(value)
    return value if type(value) is kind else default


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable(key): _storable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_storable(part) for part in value]
    return value
