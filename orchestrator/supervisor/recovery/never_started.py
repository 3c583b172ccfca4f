"""Tells from a command's output that nothing of its script ran: a program or file was not found."""

import contextlib
import os
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from orchestrator.rundir.program import path_of_program, position_of_program

# `timeout`, `env`, `nice` and other wrappers end with these where they have run no command.
WRAPPER_STATUSES = range(125, 128)
# The numbers of a missing file, a forbidden one, and paths that lead to no file.
_ERRNOS = r"\[Errno (?:2|13|20|21|36|40)\]"
# Python's own messages, and those of shells that are given a script. None of them is translated.
_MESSAGES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\S*: can't open file (['\"])(?P<file>.*)\1: {_ERRNOS} ",
        r"\S*: can't find '__main__' module in (['\"])(?P<file>.*)\1$",
        r"\S*: No module named (?P<module>[\w.]+?)(\.__main__; .* directly executed)?$",
        r"\S*: Error while finding module specification for '(?P<module>[\w.]+)' ",
        r"\w*sh: (?:0: cannot open )?(?P<file>.+): No such file",
    )
)
_SHELL = re.compile(r"(ba|da|z|k)?sh")
_COMMAND_TEXT = re.compile(r"-[a-z]*c")
_SHELL_SYNTAX = re.compile(r"[;&|<>()`$\n]")


def never_started(command: Sequence[str], returncode: int, output: Sequence[str]) -> str | None:
    """Return the line of the output that says that nothing of the script ran; None otherwise.

    ``returncode`` and ``output`` are those of the command. A message counts only if it is about a
    word of the command itself, and no script of the user's comes before that word.
    """
    if returncode <= 0 or not (words := _words(command)):
        return None
    position = position_of_program(words)
    if position is None or path_of_program(words, position) is None:
        position = len(words)  # each word may be a program that starts the next one
    wrappers = {Path(word).name for word in words[:position]} | {*words[:position]}
    modules = {word.removeprefix("-m") for word in words[: position + 1]}
    files = {os.path.abspath(word) for word in words[: position + 1]}
    for line in output:
        by_wrapper = returncode in WRAPPER_STATUSES and line.partition(": ")[0] in wrappers
        if by_wrapper or _is_about(line, modules, files):
            return line
    return None


def _words(command: Sequence[str]) -> list[str] | None:
    """Return the words of a command, with those of the only command of a ``sh -c TEXT``.

    None where the text has more than one command: some of them may have run.
    """
    for index in range(1, len(command) - 1):
        if _COMMAND_TEXT.fullmatch(command[index]) and _SHELL.fullmatch(
            Path(command[index - 1]).name
        ):
            text = command[index + 1]
            if _SHELL_SYNTAX.search(text):
                return None
            with contextlib.suppress(ValueError):  # a quote that is not closed
                return [*command[:index], *shlex.split(text)]
            return None
    return [*command]


def _is_about(line: str, modules: Collection[str], files: Collection[str]) -> bool:
    """Return whether a line says that one of these modules or files was not found."""
    for message in _MESSAGES:
        if (match := message.match(line)) is not None:
            found = match.groupdict()
            if module := found.get("module"):
                return module in modules
            return os.path.abspath(found["file"]) in files
    return False
