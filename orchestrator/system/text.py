"""Text from outside: made storable where it comes in, and harmless where it is shown.

``storable`` belongs at the border where a text is read, ``shown`` at the place where it is printed.
"""

import re
from typing import Any

# No encoder takes a lone surrogate, and neither an environment nor a path can hold a NUL.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
# Control characters, which a terminal obeys, and those that reorder or hide the text around them.
_CONTROL = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def storable(text: str) -> str:
    r"""Return the text with every NUL and lone surrogate written as an escape, such as \\x00."""
    return _UNSTORABLE.sub(_escape, text)


def shown(text: object) -> str:
    r"""Return the text with all that a terminal would obey written as an escape, such as \\x1b.

    Line feeds and tabs stay.
    """
    return _CONTROL.sub(_escape, str(text))


def shown_line(text: object) -> str:
    """Return the text as ``shown`` does, on one line."""
    return shown(text).replace("\n", "\\n")


def shown_parts(value: Any) -> Any:
    """Return a value of JSON with every text in it on one line as ``shown_line`` has it."""
    if isinstance(value, dict):
        return {shown_line(key): shown_parts(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shown_parts(part) for part in value]
    return shown_line(value) if isinstance(value, str) else value


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
