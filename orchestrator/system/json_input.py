"""The one parser of JSON from outside: a caller sees a value or a ValueError, and nothing else."""

import json
from typing import Any

from orchestrator.system.text import storable

# Each bracket and each comma may stand for an object of a hundred bytes.
MOST_PARTS = 2_000_000
# Whatever reads a value again, such as a copy or a digest, goes as deep as the value does.
MOST_LEVELS = 100
SMALLEST_INTEGER, LARGEST_INTEGER = -(1 << 63), (1 << 64) - 1
# Found some times faster than by a regular expression, which would show in reading a journal.
_ALL_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_LONG_INTEGER = b"0" * 19
_CONTAINERS = frozenset((dict, list))


def parse_json(data: bytes | str, *, has_paths: bool = False, most_parts: int = MOST_PARTS) -> Any:
    """Return the value of a JSON text in UTF-8. Raises ValueError for anything else.

    Every text in it is made storable, unless it ``has_paths``: a lone surrogate stands for a byte
    of a path that is not UTF-8. More than ``most_parts`` brackets and commas are refused, and so
    are more than MOST_LEVELS brackets in each other, and integers of more than 64 bits.
    """
    try:
        if isinstance(data, bytes):
            text, raw = data.decode(), data
        else:
            text, raw = data, data.encode(errors="surrogatepass")
        brackets = text.count("[") + text.count("{")
        if brackets + text.count(",") > most_parts:
            raise ValueError("it has too many parts")
        # A decoder of its own costs more than reading a short line does.
        is_long = _LONG_INTEGER in raw.translate(_ALL_ZEROS)
        value = json.loads(text, parse_int=_integer) if is_long else json.loads(text)
        if brackets > MOST_LEVELS:
            _check_levels(value)
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


def _integer(digits: str) -> int:
    # The digits of the largest, and a sign: more of them take long to read.
    if len(digits) > 21 or not SMALLEST_INTEGER <= (value := int(digits)) <= LARGEST_INTEGER:
        raise ValueError("an integer in it has more than 64 bits")
    return value


def _check_levels(value: Any) -> None:
    level = [value]
    for _ in range(MOST_LEVELS):
        inner: list[Any] = []
        for part in level:
            parts = part.values() if type(part) is dict else part
            # Of the names of a hundred thousand checkpoints none is looked at by itself.
            if not _CONTAINERS.isdisjoint(map(type, parts)):
                inner += [each for each in parts if type(each) in _CONTAINERS]
        if not inner:
            return
        level = inner
    raise ValueError("it is nested too deeply")


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable(key): _storable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_storable(part) for part in value]
    return value
