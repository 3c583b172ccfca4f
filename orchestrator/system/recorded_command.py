"""A command as files and messages show it: without the secrets in its arguments."""

import re
from collections.abc import Sequence

from orchestrator.system.text import storable

MASK = "***"

_SECRET_NAMES = re.compile(
    r"(^|[-_.])(token|secret|password|passwd|passphrase|credentials?|apikey|authorization|bearer"
    r"|(api|access|secret|private|auth|account|storage|license|encryption|signing)[-_.]?key"
    r"|auth[-_.]?token|secret[-_.]?access[-_.]?key)$",
    re.IGNORECASE,
)
# Tokens of a vocabulary, which scripts name too; what is no word of it counts as the whole name.
_PLAIN_NAMES = re.compile(
    r"((^|[-_.])(pad|eos|bos|unk|mask|sep|cls|image|video|audio|special|prompt|boi|eoi|decoder)"
    r"|^[-_.]*(\w+\.)*((decoder|begin)[-_.])?(start|end|stop|begin|class|per|no|max|min|num|last|first|next))"
    r"[-_.]?token$",
    re.IGNORECASE,
)
_OPTION = re.compile(r"(?P<name>[-+]*[A-Za-z][\w.-]*)=(?P<value>.+)", re.DOTALL)
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# user:password@ in an address. It begins where a word does: a search from every letter of a long
# word would take minutes.
_PASSWORD_IN_URL = re.compile(
    r"(?P<before>(?<![a-z0-9+.-])[a-z0-9+.-]+://[^/\s:@]*:)[^/\s@]+(?=@)", re.IGNORECASE
)
_KNOWN_SECRETS = re.compile(
    r"(\b(?:hf_|ghp_|gho_|ghs_|github_pat_|glpat-|xox[abpr]-|sk-|AKIA|ASIA|AIza|ya29\.)"
    r"|(?<![\w-])eyJ[\w-]+\.eyJ)[\w.-]{10,}"
)


def recorded(command: Sequence[str]) -> list[str]:
    """Return the words of a command with each value that looks like a secret written as ***."""
    words: list[str] = []
    is_value = False
    for word in command:
        following = is_value and not word.startswith("-")
        is_value = word.startswith("-") and "=" not in word and _is_secret(word)
        words.append(MASK if following and word else _masked(storable(word)))
    return words


def _masked(word: str) -> str:
    if (found := _OPTION.fullmatch(word)) and _is_secret(found["name"]):
        return f"{found['name']}={MASK}"
    word = _PASSWORD_IN_URL.sub(rf"\g<before>{MASK}", word)
    return _KNOWN_SECRETS.sub(rf"\g<1>{MASK}", word)


def _is_secret(name: str) -> bool:
    name = _WORD.sub("-", name)
    return bool(_SECRET_NAMES.search(name)) and not _PLAIN_NAMES.search(name)
