"""The one function through which commands print text for people."""

import io
import sys

from orchestrator.system.text import shown


def print_text(text: object, *, to_stderr: bool = False) -> None:
    """Print a text without what a terminal would obey.

    It may have names, metrics and messages in it that a trainer, a file or another user wrote.
    """
    # In one write: print() writes the end of a line by itself, and another rank may come between.
    print(f"{shown(text)}\n", end="", file=sys.stderr if to_stderr else sys.stdout, flush=True)


def escape_what_cannot_be_encoded() -> None:
    r"""Make standard output show a character that its encoding lacks as an escape, such as \xe9.

    Standard error does so by itself.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
