"""Words and values as unit files have them (systemd.syntax(7), systemd.service(5))."""

import re
from collections.abc import Iterable

from orchestrator.errors import ConfigError

_PLAIN = re.compile(r"[\w/.,:=@+-]+", re.ASCII)


def literal(value: str) -> str:
    """A value that goes to the end of its line. Raises ConfigError where it cannot."""
    if value != value.strip() or not value.isprintable() or value.endswith("\\"):
        raise ConfigError(
            f"cannot write {value!r} into a unit: it begins or ends with a space, or holds "
            "characters that cannot be printed; name another directory"
        )
    return value.replace("%", "%%")


def word(text: str) -> str:
    """One word of several, quoted where that is needed. Raises ConfigError where it is no text."""
    if _PLAIN.fullmatch(text):
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"cannot write {text!r} into a unit: it is not UTF-8") from None
    return '"' + "".join(map(_escaped, text)) + '"'


def words(texts: Iterable[str]) -> str:
    """A list of words."""
    return " ".join(map(word, texts))


def command(texts: Iterable[str]) -> str:
    """A command line, of which systemd is to expand nothing."""
    return words(text.replace("$", "$$") for text in texts)


def _escaped(sign: str) -> str:
    if sign in '"\\':
        return "\\" + sign
    if ord(sign) < 32 or ord(sign) == 127:
        return f"\\x{ord(sign):02x}"
    return "%%" if sign == "%" else sign
