"""The pattern of --adopt: which paths are checkpoints, and which step a name tells."""

import contextlib
import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_WILDCARDS = re.compile(r"(\*|\?+|(?:\[[^\]]+\])+)")
_CLASS = re.compile(r"\[(!?)([^\]]+)\]")
# How a shell pattern names these characters themselves.
_ESCAPED = re.compile(r"\[([*?[])\]")
_STEP = re.compile(r"step\D?(\d+)", re.IGNORECASE)
_DATE = r"(?<!\d)20\d\d[-_. ]?(?:0[1-9]|1[0-2])[-_. ]?(?:0[1-9]|[12]\d|3[01])"
_TIME = r"(?:[-_T. ]?[0-2]\d[-_:. ]?[0-5]\d(?:[-_:. ]?[0-5]\d)?)?(?!\d)"
# A date, whose last number begins anew, a metric, what Lightning appends to a name that is taken.
_NO_STEP = re.compile(_DATE + _TIME + r"|\d+\.\d+|-v\d+(?=\.|$)")
# Longer numbers have no place in the name of a checkpoint's directory: a time in milliseconds.
LONGEST_STEP_DIGITS = 12


@dataclass(frozen=True)
class PatternLevel:
    """One component of the pattern; without ``matches`` it is a plain name."""

    text: str
    matches: re.Pattern[str] | None

    @classmethod
    def of(cls, text: str) -> Self:
        """``*``, ``?`` and ``[...]`` as a shell understands them. Raises ValueError."""
        if not _WILDCARDS.search(_ESCAPED.sub("", text)):
            return cls(_ESCAPED.sub(r"\1", text), None)
        pieces = _WILDCARDS.split(text)
        # As in a shell, a leading dot must be named.
        hidden = "" if text.startswith(".") else r"(?!\.)"
        parts = [_group(p) if i % 2 else re.escape(p) for i, p in enumerate(pieces)]
        try:
            return cls(text, re.compile(hidden + "".join(parts), re.DOTALL))
        except re.error as error:
            raise ValueError(f"{text} has a [...] that names no characters: {error}") from None

    def within(self, directory: Path) -> list[Path]:
        """What there is of this name; links are passed over where a wildcard finds them."""
        if self.matches is None:
            return [directory / self.text] if os.path.lexists(directory / self.text) else []
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            return [
                directory / entry.name
                for entry in entries
                if self.matches.fullmatch(entry.name) and not entry.is_symlink()
            ]
        return []


def _group(wildcard: str) -> str:
    if wildcard == "*":
        return "(.*)"
    if wildcard[0] == "?":
        return f"(.{{{len(wildcard)}}})"
    return "(" + _CLASS.sub(_regular_class, wildcard) + ")"


def _regular_class(found: re.Match[str]) -> str:
    """Without the meanings that a regular expression gives to more characters than a shell."""
    characters = re.sub(r"([\\^\[&|~])", r"\\\1", found[2])
    return f"[{'^' if found[1] else ''}{characters}]"


@dataclass(frozen=True)
class Pattern:
    """An absolute path whose components may have wildcards."""

    text: str
    base: Path
    levels: tuple[PatternLevel, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the command line; relative to the current directory. Raises ValueError."""
        if not text.strip():
            raise ValueError("name the checkpoints that the script saves, such as 'out/step-*.pt'")
        if "**" in text:
            raise ValueError("** is not supported; name each level, as in 'logs/*/step-*.ckpt'")
        # Only what was written is a pattern, whatever the current directory is called.
        whole = os.path.join(glob.escape(str(Path.cwd())), os.path.expanduser(text))
        parts = Path(os.path.normpath(whole)).parts
        levels = [PatternLevel.of(part) for part in parts[1:]]
        if not levels:
            raise ValueError("name the checkpoints, not the root directory")
        plain = next((i for i, level in enumerate(levels) if level.matches), len(levels) - 1)
        base = Path(parts[0], *(level.text for level in levels[:plain]))
        return cls(text, base, tuple(levels[plain:]))

    @property
    def is_one_path(self) -> bool:
        """Whether it names a single path, which the script overwrites with each save."""
        return all(level.matches is None for level in self.levels)

    @property
    def tells_steps(self) -> bool:
        """Whether there is a place for a step in the names of what it matches."""
        return self.levels[-1].matches is not None

    def find(self) -> tuple[list[Path], list[Path]]:
        """The directories in which matches may appear, and the matches; a link is none."""
        if not self.base.is_dir():
            return [next(parent for parent in self.base.parents if parent.is_dir())], []
        directories: list[Path] = []
        paths = [self.base]
        for level in self.levels:
            parents = [path for path in paths if path.is_dir()]
            directories += parents
            paths = [found for parent in parents for found in level.within(parent)]
        if not self.tells_steps:  # a wildcard has passed over links already
            paths = [path for path in paths if not path.is_symlink()]
        if self.is_one_path:
            # One that is written over changes inside only.
            directories += [path for path in paths if path.is_dir()]
        return directories, paths

    def takes(self, path: Path) -> bool:
        """Whether this absolute path is in what it matches, or would be."""
        below = path.parts[len(self.base.parts) :]
        inside = path.is_relative_to(self.base) and len(below) >= len(self.levels)
        return inside and self.concerns(str(path))

    def concerns(self, path: str) -> bool:
        """Whether what happens to this path may be of interest."""
        if not Path(path).is_relative_to(self.base):
            return self.base.is_relative_to(path)  # it may be about to appear
        parts = Path(path).relative_to(self.base).parts
        named = zip(self.levels, parts, strict=False)
        return all(
            level.matches.fullmatch(part) if level.matches else level.text == part
            for level, part in named
        )

    def step_of(self, path: Path) -> int | None:
        """The step that a name tells: after ``step``, else the last number where a wildcard is."""
        level = self.levels[-1]
        match = level.matches.fullmatch(path.name) if level.matches else None
        if match is None:
            return None
        numbers = _STEP.findall(path.name) or _integers(match.groups())
        return int(numbers[-1]) if numbers and len(numbers[-1]) <= LONGEST_STEP_DIGITS else None


def _integers(texts: Iterable[str]) -> list[str]:
    return re.findall(r"\d+", _NO_STEP.sub(" ", " ".join(texts)))
