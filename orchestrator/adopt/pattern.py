"""The pattern of --adopt: which paths are checkpoints, and the step in a name."""

import contextlib
import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Self

_WILDCARDS = re.compile(r"(\*|\?+|(?:\[[^\]]+\])+)")
_CLASS = re.compile(r"\[(!?)([^\]]+)\]")
# How a shell pattern quotes a wildcard character, or a brace.
_ESCAPED = re.compile(r"\[([*?[{])\]")
_STEP = re.compile(r"step\D?(\d+)", re.IGNORECASE)
_DATE = r"(?<!\d)20\d\d[-_. ]?(?:0[1-9]|1[0-2])[-_. ]?(?:0[1-9]|[12]\d|3[01])"
_TIME = r"(?:[-_T. ]?[0-2]\d[-_:. ]?[0-5]\d(?:[-_:. ]?[0-5]\d)?)?(?!\d)"
DATE_AND_TIME = re.compile(_DATE + _TIME)
# A date, whose last number starts again at 1; a metric; what Lightning appends to a taken name.
_NO_STEP = re.compile(DATE_AND_TIME.pattern + r"|\d+\.\d+|-v\d+(?=\.|$)")
# Longer numbers, such as a time in milliseconds, do not fit the name of a checkpoint's directory.
LONGEST_STEP_DIGITS = 12


@dataclass(frozen=True)
class PatternLevel:
    """One component of the pattern; without ``matches`` it is a plain name.

    ``literals`` are the texts before, between and after the wildcards.
    """

    text: str
    matches: re.Pattern[str] | None
    literals: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Self:
        """Parse ``*``, ``?`` and ``[...]`` as a shell does. Raises ValueError."""
        if not _WILDCARDS.search(_ESCAPED.sub("", text)):
            plain = _ESCAPED.sub(r"\1", text)
            return cls(plain, None, (plain,))
        literals, parts = [""], []
        for index, piece in enumerate(_WILDCARDS.split(text)):
            if index % 2 and not _ESCAPED.fullmatch(piece):
                parts.append(_group(piece))
                literals.append("")
                continue
            literal = _ESCAPED.sub(r"\1", piece) if index % 2 else piece
            parts.append(re.escape(literal))
            literals[-1] += literal
        # As in a shell, a wildcard does not match a leading dot.
        hidden = "" if text.startswith(".") else r"(?!\.)"
        try:
            whole = re.compile(hidden + "".join(parts), re.DOTALL)
            return cls(text, whole, tuple(literals))
        except re.error as error:
            raise ValueError(f"{text} has a [...] that names no characters: {error}") from None

    def fits(self, name: str) -> bool:
        """Return whether a component of a path is the plain name, or matches."""
        return self.text == name if self.matches is None else bool(self.matches.fullmatch(name))

    def filled(self, texts: Iterator[str]) -> str:
        """Return the name in which the next of these texts stand for the wildcards."""
        return self.literals[0] + "".join(next(texts) + after for after in self.literals[1:])

    def within(self, directory: Path) -> list[Path]:
        """Return the paths in ``directory`` that match; links do not count."""
        if self.matches is None:
            path = directory / self.text
            return [path] if os.path.lexists(path) and not os.path.islink(path) else []
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
    """Return a character class in which only a shell's special characters are special."""
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
        """Parse the text of the option, relative to the current directory. Raises ValueError."""
        if not text.strip():
            raise ValueError("name the checkpoints that the script saves, such as 'out/step-*.pt'")
        if "**" in text:
            raise ValueError("** is not supported; name each level, as in 'logs/*/step-*.ckpt'")
        # Only the text itself is a pattern: the current directory may have wildcards in its name.
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
        """Whether the names that it matches may contain a step."""
        return self.levels[-1].matches is not None

    @property
    def wildcards(self) -> int:
        """How many wildcards it has."""
        return sum(len(level.literals) - 1 for level in self.levels)

    @property
    def literal_length(self) -> int:
        """How many characters of a match are given: the more, the narrower the pattern."""
        return sum(len(literal) for level in self.levels for literal in level.literals)

    def texts_in(self, path: Path) -> tuple[str, ...] | None:
        """Return what the wildcards stand for in this path; None if it does not match."""
        below = path.parts[len(self.base.parts) :]
        if len(below) != len(self.levels) or not path.is_relative_to(self.base):
            return None
        texts: list[str] = []
        for level, name in zip(self.levels, below, strict=True):
            if not level.fits(name):
                return None
            if level.matches is not None and (found := level.matches.fullmatch(name)):
                texts += found.groups()
        return tuple(texts)

    def filled(self, texts: Iterable[str]) -> Path:
        """Return the path in which these texts stand for the wildcards."""
        rest = iter(texts)
        return self.base.joinpath(*[level.filled(rest) for level in self.levels])

    def find(self) -> tuple[list[Path], list[Path]]:
        """Return the directories where matches may appear, and the matches; links do not count."""
        if not os.path.isdir(self.base):
            return [next(parent for parent in self.base.parents if os.path.isdir(parent))], []
        directories: list[Path] = []
        paths = [self.base]
        for level in self.levels:
            parents = [path for path in paths if os.path.isdir(path)]
            directories += parents
            paths = [found for parent in parents for found in level.within(parent)]
        if self.is_one_path:
            # A directory that is written over changes only inside.
            directories += [path for path in paths if os.path.isdir(path)]
        return directories, paths

    def names(self, path: Path) -> bool:
        """Return whether exactly this path is named, with no link below the part without wildcards.

        What a manifest says is not to be trusted: only a path that the person who gave the pattern
        has named may be moved, deleted or written to.
        """
        base = os.path.join(self.base, "")
        if not str(path).startswith(base):
            return False
        below = str(path)[len(base) :].split("/")
        if len(below) != len(self.levels) or not all(map(PatternLevel.fits, self.levels, below)):
            return False
        return not any(map(os.path.islink, accumulate(below, os.path.join, initial=base)))

    def covers(self, path: Path) -> bool:
        """Return whether this absolute path is, or would be, a match or inside of one."""
        below = path.parts[len(self.base.parts) :]
        inside = path.is_relative_to(self.base) and len(below) >= len(self.levels)
        return inside and self.may_affect_match(str(path))

    def may_affect_match(self, path: str) -> bool:
        """Return whether an event at this path may concern a match or a directory above one."""
        if not Path(path).is_relative_to(self.base):
            return self.base.is_relative_to(path)  # the base may be about to appear
        parts = Path(path).relative_to(self.base).parts
        return all(level.fits(part) for level, part in zip(self.levels, parts, strict=False))

    def step_of(self, path: Path) -> int | None:
        """Return the number after ``step`` in the name, else the last that a wildcard matches."""
        level = self.levels[-1]
        match = level.matches.fullmatch(path.name) if level.matches else None
        if match is None:
            return None
        numbers = _STEP.findall(path.name) or _integers(match.groups())
        return int(numbers[-1]) if numbers and len(numbers[-1]) <= LONGEST_STEP_DIGITS else None


def _integers(texts: Iterable[str]) -> list[str]:
    return re.findall(r"\d+", _NO_STEP.sub(" ", " ".join(texts)))
