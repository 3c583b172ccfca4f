"""Splits a Python command line into the interpreter with its options and the script or module."""

import os
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

_INTERPRETER = re.compile(r"python(\d+(\.\d+)*)?")
_SHELL = re.compile(r"(ba|da|z|k)?sh")
_FLAGS = re.compile(r"-[bBdEIOPqRsSu]+")
_WITH_VALUE = {"-W", "-X", "--check-hash-based-pycs"}


@dataclass(frozen=True)
class PythonCommand:
    """A command; ``python`` is the interpreter with its options, ``words`` the rest.

    ``words`` begins with the script, with ``-m`` and the module, or with ``-mMODULE``.
    """

    python: list[str]
    words: list[str]

    @property
    def module(self) -> str | None:
        """The module of -m; None for a script."""
        first = self.words[0]
        return (first[2:] or self.words[1]) if first.startswith("-m") else None


def python_command(command: list[str]) -> PythonCommand | None:
    """Split ``PYTHON [OPTIONS] SCRIPT ...`` or ``PYTHON [OPTIONS] -m MODULE ...``.

    Returns None for any other command.
    """
    if not _INTERPRETER.fullmatch(Path(command[0]).name):
        return None
    index = _first_word(command)
    words = command[index:]
    if not words:
        return None
    names_module = words[0].startswith("-m") and (len(words[0]) > 2 or len(words) > 1)
    return PythonCommand(command[:index], words) if names_module or _is_source(words[0]) else None


def missing_script(command: list[str]) -> str | None:
    """Return the script that an interpreter or a shell is to run, if there is no such file."""
    name = Path(command[0]).name
    if _SHELL.fullmatch(name):
        word = command[1] if len(command) > 1 else "-"
        found = shutil.which(word) is not None
    elif _INTERPRETER.fullmatch(name):
        index = _first_word(command)
        word, found = command[index] if index < len(command) else "-", False
    else:
        return None
    return None if found or word.startswith(("-", "+")) or os.path.exists(word) else word


def reads_program_from_input(command: list[str]) -> bool:
    """Return whether an interpreter is to read its program from standard input."""
    if not _INTERPRETER.fullmatch(Path(command[0]).name):
        return False
    index = _first_word(command)
    return index == len(command) or command[index] in ("-", "/dev/stdin")


def _first_word(command: list[str]) -> int:
    """Return the index of the first word after the interpreter's options."""
    index = 1
    while index < len(command):
        word = command[index]
        if word in _WITH_VALUE:
            index += 2
        elif _FLAGS.fullmatch(word) or re.match(r"-[WX].", word):
            index += 1
        else:
            break
    return index


def _is_source(word: str) -> bool:
    """Return whether a word is the path of a source file: no directory, archive or bytecode."""
    path = Path(word)
    return (
        not word.startswith("-")
        and os.path.isfile(path)
        and path.suffix != ".pyc"
        and not zipfile.is_zipfile(path)
    )
