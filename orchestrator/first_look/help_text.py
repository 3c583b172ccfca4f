"""Asks a script for its --help, with a deadline and no more output than is worth reading."""

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.first_look.script_run import ScriptRun
from orchestrator.rundir.program import path_of_program, position_of_program
from orchestrator.system.regular_files import open_regular

# It may import torch and transformers first.
HELP_SECONDS = 60.0
MOST_HELP_BYTES = 256 << 10
GRACE_SECONDS = 2.0
MOST_SOURCE_BYTES = 1 << 20
_POLL_MILLISECONDS = 100
# What a source has that answers --help. Another script would take that for a start.
_ANSWERS_HELP = re.compile(
    r"arg_?parse|ArgumentParser|parse_args|\bclick\b|\btyper\b|\bfire\b|\babsl\b|\bhydra\b|\bdocopt\b"
    r"|\btyro\b|simple_parsing|CLI\b|get_args"
)
# No line breaks and no colours in the help of common libraries.
_VARIABLES = {"COLUMNS": "250", "TERM": "dumb", "NO_COLOR": "1"}


def source_of(command: Sequence[str]) -> str | None:
    """Return the source of the script or module that a command runs; None where it is no text."""
    words = list(command)
    path = path_of_program(words, position_of_program(words))
    try:
        return None if path is None else _read(path)
    except (OSError, ValueError):
        return None


def _read(path: Path) -> str:
    # A shell's <(...) can be read only once, by the script.
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        return file.read(MOST_SOURCE_BYTES).decode()


def answers_help(source: str | None) -> bool:
    """Return whether a command answers --help, as far as its source shows."""
    return source is None or _ANSWERS_HELP.search(source) is not None


@dataclass(frozen=True)
class Help:
    """What a script prints with --help, and why it may be incomplete."""

    text: str
    problem: str = ""


def ask_for_help(
    command: Sequence[str], is_stopped: Callable[[], bool], seconds: float = HELP_SECONDS
) -> Help:
    """Run the command with --help, at most until the time is up. Raises ConfigError."""
    read_end, write_end = os.pipe()
    try:
        script = ScriptRun(
            [*command, "--help"],
            output=write_end,
            stdin=subprocess.DEVNULL,
            variables=_VARIABLES,
        )
    finally:
        os.close(write_end)
    try:
        text = _read_output(read_end, script, is_stopped, time.monotonic() + seconds)
        has_ended = script.wait(GRACE_SECONDS if len(text) < MOST_HELP_BYTES else 0.0)
    finally:
        end = script.end(GRACE_SECONDS, signal.SIGTERM, is_stopped)
        os.close(read_end)
    if not has_ended:
        return Help(text, f"its --help did not end within {seconds:g} s")
    return Help(text, f"its --help failed with status {end.status}" if end.status else "")


def _read_output(
    descriptor: int, script: ScriptRun, is_stopped: Callable[[], bool], deadline: float
) -> str:
    output = bytearray()
    poll = select.poll()  # select() refuses descriptors above 1023
    poll.register(descriptor, select.POLLIN)
    while len(output) < MOST_HELP_BYTES and time.monotonic() < deadline and not is_stopped():
        has_ended = script.has_ended
        if poll.poll(0 if has_ended else _POLL_MILLISECONDS):
            if not (data := os.read(descriptor, 65536)):
                break
            output += data
        elif has_ended:
            break  # a process that it has left holds the pipe
    return output[:MOST_HELP_BYTES].decode(errors="replace")
