"""The words of --resume-arg, which tell a script what to resume from."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from orchestrator.errors import ConfigError

_PLACEHOLDER = re.compile(r"{([^{}]*)}")
_NAME = re.compile(r"\w+")


@dataclass(frozen=True)
class ResumeArgument:
    """Words that are added to the command when there is a checkpoint to resume from."""

    template: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split a text with ``{path}`` and ``{step}`` as a shell does. Raises ValueError."""
        words = tuple(shlex.split(text))
        if not words:
            raise ValueError("write what the script takes, such as '--resume {path}'")
        names = {name for word in words for name in _PLACEHOLDER.findall(word)}
        if not all(map(_NAME.fullmatch, names)):
            raise ValueError("a name in braces is a word, such as {path} or {step}")
        if any(word.count("{") != word.count("}") for word in words):
            raise ValueError("a brace is not closed; write {path} or {step}")
        return cls(words)

    def check_names(self, members: Sequence[str]) -> None:
        """Check that every ``{name}`` can be filled in, for a unit of these members, by name.

        Raises ConfigError.
        """
        several = len(members) > 1
        numbered = [f"path{number}" for number in range(1, len(members) + 1)]
        known = ["path", "step", *(dict.fromkeys([*members, *numbered]) if several else ())]
        used = {name for word in self.template for name in _PLACEHOLDER.findall(word)}
        if unknown := sorted(used - set(known)):
            first, last = ", ".join(f"{{{name}}}" for name in known[:-1]), known[-1]
            names = ", ".join(f"{{{name}}}" for name in unknown)
            raise ConfigError(
                f"cannot use --resume-arg: there are {first} and {{{last}}}, not {names}"
            )

    @property
    def needs_step(self) -> bool:
        """Whether only a checkpoint with a number in its name can fill it."""
        return any("{step}" in word for word in self.template)

    def words(self, members: Mapping[str, Path], step: int | None) -> list[str]:
        """Fill in one checkpoint, of which ``{path}`` is the first member.

        Raises ConfigError if ``{step}`` is used and ``step`` is None.
        """
        paths = list(members.values())
        if step is None and self.needs_step:
            raise ConfigError(
                f"cannot fill in {{step}} of --resume-arg: the name of {paths[0]} has no number; "
                "use {path}"
            )
        numbered = {f"path{number}": path for number, path in enumerate(paths, 1)}
        values = {**numbered, **members, "path": paths[0], "step": step}
        # In one pass: the path may contain braces.
        return [_PLACEHOLDER.sub(lambda f: str(values[f[1]]), word) for word in self.template]
