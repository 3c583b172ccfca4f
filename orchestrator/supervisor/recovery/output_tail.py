"""Reads the end of the trainer's output: last lines, a traceback, faulthandler's stacks."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.rundir.error_record import MOST_CAUSES
from orchestrator.rundir.paths import real_parents_of
from orchestrator.terminal.rotating_file import read_end

END_BYTES = 1 << 18
LAST_LINES = 20
LONGEST_LINE = 300
STACK_FRAMES = 20

_TERMINAL_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, cursor movements
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles, links
    r"|\x1b[ -~]"
)
# A progress bar goes back to the beginning of its line with one of these.
_LINE_BEGINS_AGAIN = re.compile(r"\r|\x08+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_TRACEBACK = "Traceback (most recent call last):"
_EXCEPTION = re.compile(r"(?P<type>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$")
_FRAME = re.compile(r'\s*File "(?P<file>.*)", line (?P<line>\d+),? in (?P<name>.+)$')
_ERRNO = re.compile(r"\[Errno (\d{1,9})\]")
_LINK = re.compile(r"(The above exception was the direct cause|During handling of the above)")
_FATAL = "Fatal Python error: "


def end_of(log: Path) -> list[str]:
    """Return the last lines of output.log as a terminal would show them, without empty ones."""
    try:
        text = read_end(log, END_BYTES, real_parents=real_parents_of(log)).decode(errors="replace")
    except OSError:
        return []
    lines = [_as_shown(line) for line in text.split("\n")]
    return [line for line in lines if line]


def last_lines(lines: list[str]) -> list[str]:
    """Return at most LAST_LINES lines, shortened to fit into a record."""
    return [line[:LONGEST_LINE] for line in lines[-LAST_LINES:]]


def traceback_in(lines: Sequence[str], causes: int = MOST_CAUSES) -> dict[str, Any] | None:
    """Return the exception at the end of the output, in the form of error.json; None without one.

    It serves scripts that fail before they import the session. The exception keeps ``causes`` of
    the exceptions that led to it.
    """
    if _TRACEBACK not in lines:
        return None
    begin = len(lines) - 1 - lines[::-1].index(_TRACEBACK)
    below = range(begin + 1, len(lines))
    end = next((i for i in below if not lines[i].startswith(" ")), None)
    if end is None or (found := _EXCEPTION.match(lines[end])) is None:
        return None
    if end < len(lines) - LAST_LINES:
        return None  # it was printed, and the script went on
    frames = [frame for line in lines[begin:end] if (frame := _FRAME.match(line))]
    number = _ERRNO.search(found["message"] or "")
    is_chained = causes > 0 and begin > 0 and _LINK.match(lines[begin - 1])
    return {
        "errno": int(number[1]) if number else None,
        "cause": traceback_in(lines[: begin - 1], causes - 1) if is_chained else None,
        "type": found["type"].rpartition(".")[2],
        "message": found["message"] or "",
        "frame": _location(frames[-1]) if frames else None,
        "traceback": "\n".join(lines[begin:]),
    }


def fatal_stack(lines: Sequence[str]) -> list[str]:
    """Return the frames of the thread that a fatal signal hit, innermost first.

    faulthandler prints them, because the supervisor sets PYTHONFAULTHANDLER; a script that sends
    its stacks to another file has them only there.
    """
    fatal = [i for i, line in enumerate(lines) if line.startswith(_FATAL)]
    if not fatal:
        return []
    dump = lines[fatal[-1] :]
    stacks = [i for i, line in enumerate(dump) if line.endswith("(most recent call first):")]
    hit = next((i for i in stacks if dump[i].startswith("Current thread ")), min(stacks, default=0))
    frames = itertools.takewhile(bool, map(_FRAME.match, dump[hit + 1 :]))
    return [_location(frame) for frame in itertools.islice(frames, STACK_FRAMES) if frame]


def _as_shown(line: str) -> str:
    parts = _LINE_BEGINS_AGAIN.split(_TERMINAL_SEQUENCE.sub("", line))
    shown = next((part for part in reversed(parts) if part.strip()), "")
    return _CONTROL.sub("", shown).rstrip()


def _location(frame: re.Match[str]) -> str:
    return f"{frame['file']}:{frame['line']} {frame['name']}"
