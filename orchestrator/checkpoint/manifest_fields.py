"""Reads the fields of manifest.json, which may hold anything."""

import os
import re
from typing import TypeVar

# A script's files may have any names, in folders too, but none that leads elsewhere.
NAME_BELOW = re.compile(r"(?!\.{0,2}(?:/|$))[^/\0]+(?:/(?!\.{0,2}(?:/|$))[^/\0]+)*")

# No file is larger, and no time of a file is later.
LARGEST_NUMBER = 2**63 - 1

JsonObject = dict[str, object]
"""An object of manifest.json that has not been checked yet."""

T = TypeVar("T")


def typed(content: JsonObject, key: str, kind: type[T]) -> T:
    """Return a field of this type. Raises KeyError and ValueError."""
    value = content[key]
    if not isinstance(value, kind):
        raise ValueError(f"manifest.json has {key} = {value!r}, not a {kind.__name__}")
    return value


def text_of(value: object) -> str:
    """Return a text that every encoder takes: lone surrogates, which only paths need, escaped."""
    return str(value).encode(errors="backslashreplace").decode()


def count_of(content: JsonObject, key: str, maximum: int | None = None) -> int:
    """Return a field that is a number of at least 0. Raises KeyError and ValueError."""
    value = typed(content, key, int)
    if maximum is not None and value > maximum:
        raise ValueError(f"manifest.json has {key} = {value}, and the most is {maximum}")
    if value < 0 or isinstance(value, bool):
        raise ValueError(f"manifest.json has {key} = {value!r}, not a count")
    return value


def is_path(name: str) -> bool:
    """Return whether the system can encode a name."""
    try:
        os.fsencode(name)
    except ValueError:
        return False
    return True
