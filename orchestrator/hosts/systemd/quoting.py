"""Quoting for unit files (systemd.syntax(7), systemd.service(5))."""

import re
from collections.abc import Iterable

from orchestrator.errors import ConfigError

_PLAIN = re.compile(r"[\w/.,:=@+-]+", re.ASCII)


def escape_value(value: str) -> str:
    """Escape a value that extends to the end of its line. Raises ConfigError if that fails."""
    if value != value.strip() or not value.isprintable() or value.endswith("\\"):
        raise ConfigError(
            f"cannot write {value!r} into a unit: it begins or ends with a space, or holds "
            "characters that cannot be printed; name another directory"
        )
    return value.replace("%", "%%")


def quote_word(text: str) -> str:
    """Quote one word if necessary. Raises ConfigError if it is not valid UTF-8."""
    if _PLAIN.fullmatch(text):
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"cannot write {text!r} into a unit: it is not UTF-8") from None
    return '"' + "".join(map(_escape_character, text)) + '"'


def quote_words(words: Iterable[str]) -> str:
    """Return the quoted words, separated by spaces."""
    return " ".join(map(quote_word, words))


def quote_command(words: Iterable[str]) -> str:
    """Return a command line in which systemd expands no variables."""
    return quote_words(word.replace("$", "$$") for word in words)


def _escape_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if ord(character) < 32 or ord(character) == 127:
        return f"\\x{ord(character):02x}"
    return "%%" if character == "%" else character
