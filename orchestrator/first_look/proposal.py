"""What a look has found out: the pattern, the resume argument, and what both rest on."""

import contextlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from orchestrator.adopt.file_check import IncompleteError
from orchestrator.adopt.files import SavedFiles
from orchestrator.adopt.pattern import Pattern
from orchestrator.adopt.recipes import RECIPES
from orchestrator.adopt.save_check import Completeness, examine
from orchestrator.adopt.unit_pattern import UnitPattern
from orchestrator.first_look.help_text import Help
from orchestrator.first_look.look import Look
from orchestrator.first_look.patterns import pattern_text
from orchestrator.first_look.resume_options import (
    find_in_source,
    find_member_options,
    find_resume_option,
)
from orchestrator.first_look.saves import SaveGroup, Saves


@dataclass(frozen=True)
class Findings:
    """The settings for a script, as texts of a command line, and what is known about its saves."""

    saves: Saves
    adopt: str
    """The pattern, or a line for each file that the script saves together with it."""
    resume_arg: str | None
    resume_source: str
    """Where the resume argument comes from, or why there is none."""
    completeness: Completeness | None
    """None where the newest save is incomplete or gone."""

    @property
    def settings(self) -> dict[str, str]:
        """The settings by their names in a configuration file."""
        found = {"adopt": self.adopt}
        return found if self.resume_arg is None else found | {"resume_arg": self.resume_arg}

    @property
    def pattern(self) -> UnitPattern:
        """The parsed pattern."""
        return UnitPattern.parse(self.adopt)


def findings(
    look: Look, command: Sequence[str], source: str | None, asked: Help
) -> Findings | None:
    """Return what the look has found; None where the script has saved nothing.

    ``source`` is the script's source if it can be read, ``asked`` the answer to its --help.
    """
    if look.saves is None:
        return None
    group = look.saves.group
    adopt = _recipe_pattern(group, command) or _patterns(look, look.saves, command)
    text = shlex.join(command) if source is None else source
    names = UnitPattern.parse(adopt).names
    resume_arg: str | None
    if option := find_member_options(asked.text, names):
        resume_arg, resume_source = option.words, "from its --help"
    else:
        resume_arg, resume_source = _resume_argument(group, text, asked)
    return Findings(look.saves, adopt, resume_arg, resume_source, _completeness(group))


def _resume_argument(group: SaveGroup, text: str, asked: Help) -> tuple[str | None, str]:
    """Return the words of --resume-arg, and where they come from or why there are none.

    ``text`` is the script's source, or the command where that is not known.
    """
    if option := find_resume_option(asked.text):
        return option.words, f"from its --help; {option.note}" if option.note else "from its --help"
    if not asked.problem:
        return None, "its --help names no option to resume"
    for recipe in RECIPES:
        if fnmatchcase(group.newest.name, recipe.files) and re.search(recipe.mark, text):
            return recipe.resume_arg, f"as in the recipe {recipe.name}"
    if option := find_in_source(text):
        return option.words, option.note
    return None, asked.problem


def _patterns(look: Look, saves: Saves, command: Sequence[str]) -> str:
    """Return a line for each part of a save; the first alone where the parts do not fit."""
    lines = [pattern_text(g, command, look.before) for g in (saves.group, *saves.parts)]
    try:
        UnitPattern.parse("\n".join(lines))
    except ValueError:
        return lines[0]
    return "\n".join(lines)


def _recipe_pattern(group: SaveGroup, command: Sequence[str]) -> str | None:
    """Return the pattern of a recipe that matches the newest save; it knows what may change."""
    for recipe in RECIPES:
        with contextlib.suppress(ValueError):
            text = recipe.pattern(command)
            if Pattern.parse(text).names(group.newest):
                return text
    return None


def _completeness(group: SaveGroup) -> Completeness | None:
    saved = SavedFiles.at(group.newest)
    try:
        return None if saved is None else examine(saved)
    except (IncompleteError, OSError):
        return None
