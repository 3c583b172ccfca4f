"""Finds the option by which a script is told what to resume from, in its --help or its source."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

# From the likeliest; the same for dashes and underscores, and after the last dot.
NAMES = (
    *("resume_from_checkpoint", "resume_checkpoint", "resume_ckpt", "resume_path", "resume_from"),
    *("resume_file", "resume_model", "resume", "ckpt_path", "trained_agent", "continue_from"),
    *("restore_from", "restore_path", "restore_checkpoint", "restore", "restart_from"),
    *("load_checkpoint", "load_ckpt", "load_from_checkpoint", "load_from", "load_path", "load"),
    *("from_checkpoint", "restore_file", "initial_checkpoint", "init_from", "init_checkpoint"),
)
# At the beginning of a line, in the brackets of a usage, after a shorter name, or in a frame.
_OPTION = re.compile(r"(?:^|[\[,|│(])\s*--(?P<name>[A-Za-z][\w.-]*)(?P<rest>[^\n]*)")
_CHOICES = re.compile(r"[ =]\[?\{(?P<choices>[^{}]*)\}")
_VALUE = re.compile(
    r"(?:=| (?! ))\[?(?P<value>[^\s,/\[\]-][^\s,\]]*)"
    r"|\s+(?P<typed>PATH|TEXT|FILE\w*|DIRECTORY|STR\w*)\b"
    r"|:(?P<described> )"
)
# What follows an option that takes a number or nothing.
_NO_PATH = re.compile(
    r"N|NUM\w*|INT\w*|FLOAT|BOOL\w*|COUNT|STEP\w*|EPOCH\w*|ITER\w*|ID|\w+_(?:STEP|EPOCH|ID)",
    re.IGNORECASE,
)
# A word that may be left out, after the options in argparse's usage.
_POSITIONAL = re.compile(r"\]\s+\[(\w+)\]")
_RESUMING = re.compile(r"(?:continue|resume|restart)\w*\s+(?:the\s+)?training", re.IGNORECASE)
_RESUMES = {"resume", "continue", "latest", "last", "auto"}


@dataclass(frozen=True)
class ResumeOption:
    """The words of --resume-arg, and what is known about them."""

    words: str
    note: str


def find_resume_option(help_text: str) -> ResumeOption | None:
    """Return the likeliest option of a script that resumes; None if its help names none."""
    named: dict[tuple[bool, int], ResumeOption] = {}
    described: dict[str, ResumeOption] = {}
    for name, rest, description in _options(help_text):
        plain = name.rpartition(".")[2].replace("-", "_").lower()
        if (option := _option(name, rest)) is None:
            continue
        takes_path = "{path}" in option.words
        if plain in NAMES:
            # One that takes a path, before one that does not.
            named.setdefault((not takes_path, NAMES.index(plain)), option)
        elif takes_path and _RESUMING.search(description):
            described[name] = option
    if named:
        return named[min(named)]
    for found in _POSITIONAL.finditer(help_text):
        if found[1].lower() in NAMES:
            return ResumeOption("{path}", "the script takes the path without an option")
    # Where there are several, each takes a part of what was saved.
    return next(iter(described.values())) if len(described) == 1 else None


def find_member_options(help_text: str, names: Sequence[str]) -> ResumeOption | None:
    """Return the options that take one path each of files that are saved together, by name."""
    found: dict[str, str] = {}
    for name, rest, description in _options(help_text):
        option = _option(name, rest)
        if name in names and option and "{path}" in option.words and _RESUMING.search(description):
            found[name] = f"--{name} {{{name}}}"
    if len(names) < 2 or found.keys() != set(names):
        return None
    return ResumeOption(" ".join(found[name] for name in names), "")


def find_in_source(source: str) -> ResumeOption | None:
    """Return the option that the source of a script compares its command line with."""
    for name in NAMES:
        spelled = name.replace("_", "[-_]")
        if found := re.search(rf"""["'](--{spelled})=?["']""", source):
            note = "named in its source: correct this if the option takes no path"
            return ResumeOption(f"{found[1]} {{path}}", note)
    return None


def _options(help_text: str) -> Iterator[tuple[str, str, str]]:
    """Yield the name of each option, the rest of its line, and what describes it."""
    for line, following in pairwise([*help_text.splitlines(), ""]):
        more = "" if _OPTION.search(following) else following
        # A line has several options where they are spelled in two ways, and in the usage.
        rest = line
        while found := _OPTION.search(rest):
            rest = found["rest"]
            yield found["name"], rest, f"{rest} {more}"


def _option(name: str, rest: str) -> ResumeOption | None:
    if choices := _CHOICES.match(rest):
        resuming = [choice for choice in choices["choices"].split(",") if choice in _RESUMES]
        if not resuming:
            return None
        return ResumeOption(f"--{name}={resuming[0]}", "the script finds its checkpoint itself")
    value = _VALUE.match(rest)
    if value is None:
        return ResumeOption(f"--{name}", "the option takes no path: the script finds it itself")
    if _NO_PATH.fullmatch(value["value"] or ""):
        return None
    return ResumeOption(f"--{name} {{path}}", "")
