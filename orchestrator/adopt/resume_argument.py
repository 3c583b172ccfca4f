"""The words of --resume-arg, which tell a script what to resume from."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from orchestrator.errors import ConfigError

_PLACEHOLDER = re.compile(r"{([^{}]*)}")
_KNOWN = {"path", "step"}
_FILLED = re.compile(r"{(path|step)}")


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
        unknown = {name for word in words for name in _PLACEHOLDER.findall(word)} - _KNOWN
        if unknown:
            names = ", ".join(f"{{{name}}}" for name in sorted(unknown))
            raise ValueError(f"there are {{path}} and {{step}}, not {names}")
        if any(word.count("{") != word.count("}") for word in words):
            raise ValueError("a brace is not closed; write {path} or {step}")
        return cls(words)

    @property
    def needs_step(self) -> bool:
        """Whether only a checkpoint with a number in its name can fill it."""
        return any("{step}" in word for word in self.template)

    def words(self, path: Path, step: int | None) -> list[str]:
        """Fill in one checkpoint. Raises ConfigError if ``{step}`` is used and ``step`` is None."""
        if step is None and self.needs_step:
            raise ConfigError(
                f"cannot fill in {{step}} of --resume-arg: the name of {path} has no number; "
                "use {path}"
            )
        values = {"path": str(path), "step": str(step)}
        # In one pass: the path may contain braces.
        return [_FILLED.sub(lambda found: values[found[1]], word) for word in self.template]
