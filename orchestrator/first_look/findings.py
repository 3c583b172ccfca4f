"""What a look has found out: the pattern, the resume argument, and what both rest on."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from orchestrator.adopt.completeness import Completeness, examine
from orchestrator.adopt.files import SavedFiles
from orchestrator.adopt.formats import IncompleteError
from orchestrator.adopt.pattern import Pattern
from orchestrator.adopt.recipes import RECIPES, Recipe
from orchestrator.first_look.help_text import Help
from orchestrator.first_look.look import Look
from orchestrator.first_look.patterns import pattern_text
from orchestrator.first_look.resume_options import find_in_source, find_resume_option
from orchestrator.first_look.saves import SaveGroup, Saves


@dataclass(frozen=True)
class Findings:
    """The settings for a script, as texts of a command line, and what is known about its saves."""

    saves: Saves
    adopt: str
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
    def pattern(self) -> Pattern:
        """The parsed pattern."""
        return Pattern.parse(self.adopt)


def findings(
    look: Look, command: Sequence[str], source: str | None, asked: Help
) -> Findings | None:
    """Return what the look has found; None where the script has saved nothing.

    ``source`` is the script's source if it can be read, ``asked`` the answer to its --help.
    """
    if look.saves is None:
        return None
    group = look.saves.group
    recipe = _recipe_of(group, source)
    adopt = _recipe_pattern(recipe, group, command)
    if adopt is None:
        adopt = pattern_text(group, command, look.before)
    resume_arg, resume_source = _resume_argument(recipe, source, asked)
    return Findings(look.saves, adopt, resume_arg, resume_source, _completeness(group))


def _resume_argument(
    recipe: Recipe | None, source: str | None, asked: Help
) -> tuple[str | None, str]:
    """Return the words of --resume-arg, and where they come from or why there are none."""
    if option := find_resume_option(asked.text):
        return option.words, f"from its --help; {option.note}" if option.note else "from its --help"
    if recipe is not None:
        return recipe.resume_arg, f"as {recipe.program} takes it"
    if option := find_in_source(source or ""):
        return option.words, option.note
    return None, asked.problem or "its --help names no option to resume"


def _recipe_of(group: SaveGroup, source: str | None) -> Recipe | None:
    """Return the recipe that fits the names of the saves and the script's source."""
    for recipe in RECIPES:
        if fnmatchcase(group.newest.name, recipe.files) and re.search(recipe.mark, source or ""):
            return recipe
    return None


def _recipe_pattern(recipe: Recipe | None, group: SaveGroup, command: Sequence[str]) -> str | None:
    """Return the recipe's pattern for the command if it matches the newest save."""
    if recipe is None:
        return None
    try:
        text = recipe.pattern(command)
    except ValueError:
        return None
    return text if Pattern.parse(text).names(group.newest) else None


def _completeness(group: SaveGroup) -> Completeness | None:
    saved = SavedFiles.at(group.newest)
    try:
        return None if saved is None else examine(saved)
    except (IncompleteError, OSError):
        return None
