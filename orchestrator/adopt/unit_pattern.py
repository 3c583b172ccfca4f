"""The patterns of the files or directories that a script writes in one save: a unit.

Paths belong to one unit where the wildcards of the patterns stand for the same texts. The path that
the first pattern names stands for the unit.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Self

from orchestrator.adopt.files import SavedFiles, common_folder
from orchestrator.adopt.pattern import Pattern
from orchestrator.checkpoint.adopted import MOST_MEMBERS, Adopted

# Braces that a shell would expand; {x} and [{] are no such braces.
_BRACES = re.compile(r"\{(?!\])([^{}]*,[^{}]*)\}")
_NO_NAME = re.compile(r"[^A-Za-z0-9]+")
_WORD_END = re.compile(r"[A-Za-z0-9]*$")
_WORD_START = re.compile(r"[A-Za-z0-9]*")
# These are filled in for every checkpoint, or are the numbers of members.
_TAKEN = re.compile(r"(?:path\d*|step)?")


@dataclass(frozen=True)
class UnitPattern:
    """One pattern or several, each of which names one member of a unit."""

    patterns: tuple[Pattern, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the texts of the option, one a line; braces stand for several.

        Raises ValueError.
        """
        texts = [one for line in text.split("\n") for one in _expand_braces(line)]
        patterns = tuple(map(Pattern.parse, dict.fromkeys(texts)))
        if len(patterns) > MOST_MEMBERS:
            raise ValueError(f"these are {len(patterns)} patterns, and the most is {MOST_MEMBERS}")
        first = patterns[0]
        for pattern in patterns[1:]:
            if pattern.wildcards != first.wildcards:
                raise ValueError(
                    f"{first.text} and {pattern.text} have different numbers of wildcards, so that "
                    "it cannot be told which files belong together"
                )
        examples = [pattern.filled(["1"] * first.wildcards) for pattern in patterns]
        for inner in examples:
            if outer := next((path for path in examples if path in inner.parents), None):
                raise ValueError(f"{inner} is inside of {outer}: name only the directory")
        return cls(patterns)

    @property
    def text(self) -> str:
        """The patterns as they are given on the command line, without the first --adopt."""
        return " --adopt ".join(pattern.text for pattern in self.patterns)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What --resume-arg calls each member: the word by which its pattern differs.

        Where that is no word of its own, it is ``path1`` and so on.
        """
        return _member_names([pattern.text for pattern in self.patterns])

    @property
    def is_one_path(self) -> bool:
        """Whether each pattern names a single path, which the script overwrites with each save."""
        return all(pattern.is_one_path for pattern in self.patterns)

    @property
    def tells_steps(self) -> bool:
        """Whether the names may contain a step."""
        return self.patterns[0].tells_steps

    def find(self) -> tuple[list[Path], list[Path]]:
        """Return the directories where saves may appear, and the paths that stand for the units.

        A unit of which some members are not there is returned too.
        """
        if len(self.patterns) == 1:
            return self.patterns[0].find()
        directories: dict[Path, None] = {}
        units: dict[Path, None] = {}
        for pattern in self.patterns:
            places, paths = pattern.find()
            directories |= dict.fromkeys(places)
            found = (self.members(path) for path in paths if self._owner(path) is pattern)
            units |= dict.fromkeys(members[0] for members in found if members)
        return list(directories), list(units)

    def members(self, path: Path) -> tuple[Path, ...]:
        """Return the paths of the unit to which this path belongs; none if no pattern names it."""
        if len(self.patterns) == 1:
            return (path,)
        owner = self._owner(path)
        texts = None if owner is None else owner.texts_in(path)
        if texts is None:
            return ()
        paths = tuple(pattern.filled(texts) for pattern in self.patterns)
        # A class of characters may not allow what another wildcard stands for.
        fits = all(p.texts_in(at) is not None for p, at in zip(self.patterns, paths, strict=True))
        return paths if fits else ()

    def base_of(self, path: Path) -> Path:
        """Return the directory above a path below which no directory may be a link.

        That is the part without wildcards of the pattern that names it, or something beside it.
        """
        if owner := self._owner(path):
            return owner.base
        bases = [one.base for one in self.patterns if path.is_relative_to(one.base)]
        return max(bases, key=lambda base: len(base.parts), default=path.parent)

    def look_at(self, paths: Iterable[Path]) -> SavedFiles | None:
        """Look at what is at the paths of a unit now; None where there is nothing."""
        paths = tuple(paths)
        return SavedFiles.at(*paths, bases=tuple(map(self.base_of, paths)))

    def _owner(self, path: Path) -> Pattern | None:
        """Return the narrowest of the patterns that match: model_* matches model_ema_5.pt too."""
        matching = [pattern for pattern in self.patterns if pattern.texts_in(path) is not None]
        return max(matching, key=lambda pattern: pattern.literal_length, default=None)

    def locate(self, adopted: Adopted, path: Path) -> Adopted | None:
        """Return the description of a unit whose first member is, or was, at ``path``.

        Return None unless its members are exactly a unit that the patterns name, with no link below
        the parts without wildcards.
        """
        paths = tuple(adopted.paths_from(path).values())
        members = self.members(paths[0])
        if set(members) != set(paths):
            return None
        if not all(map(Pattern.names, self.patterns, members)):
            return None
        if len(members) == 1:
            return replace(adopted, path=str(members[0]), path_from_run=None)
        return replace(
            adopted,
            path=str(members[0]),
            path_from_run=None,
            members=relative_members(self.names, members),
        )

    def covers(self, path: Path) -> bool:
        """Return whether this absolute path is, or would be, a match or inside of one."""
        return any(pattern.covers(path) for pattern in self.patterns)

    def may_affect_match(self, path: str) -> bool:
        """Return whether an event at this path may concern a match or a directory above one."""
        return any(pattern.may_affect_match(path) for pattern in self.patterns)

    def step_of(self, path: Path) -> int | None:
        """Return the step in the name of a unit's first member."""
        return self.patterns[0].step_of(path)


def relative_members(names: Iterable[str], paths: tuple[Path, ...]) -> dict[str, str]:
    """Return the members of a unit as a manifest describes them."""
    folder = common_folder(paths)
    return {name: str(path.relative_to(folder)) for name, path in zip(names, paths, strict=True)}


def _expand_braces(text: str) -> list[str]:
    found = _BRACES.search(text)
    if found is None:
        return [text]
    before, after = text[: found.start()], text[found.end() :]
    return [one for word in found[1].split(",") for one in _expand_braces(before + word + after)]


def _common_start(texts: list[str]) -> str:
    same = takewhile(lambda characters: len(set(characters)) == 1, zip(*texts, strict=False))
    return "".join(characters[0] for characters in same)


def _member_names(texts: list[str]) -> tuple[str, ...]:
    prefix = _common_start(texts)
    rests = [text[len(prefix) :] for text in texts]
    suffix = _common_start([rest[::-1] for rest in rests])[::-1]
    left, right = _WORD_END.search(prefix), _WORD_START.match(suffix)
    assert left is not None
    assert right is not None
    words = [left[0] + rest[: len(rest) - len(suffix)] + right[0] for rest in rests]
    names = [_NO_NAME.sub("_", word).strip("_") for word in words]
    return tuple(
        f"path{number}" if _TAKEN.fullmatch(name) or names.count(name) > 1 else name
        for number, name in enumerate(names, 1)
    )
