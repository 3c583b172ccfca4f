"""Runs a command in a pseudo-terminal and keeps what its screen showed, and when."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from dataclasses import dataclass

import pyte

COLUMNS, LINES = 104, 26
DEADLINE_SECONDS = 300.0
COALESCE_SECONDS = 0.04  # what is printed within this time is one frame
CURSOR_BACK = rb"(?<=\x1b8)"  # the countdown has been drawn, or erased: a frame, however short


@dataclass(frozen=True)
class Span:
    """Neighbouring characters of a line that look alike."""

    text: str
    color: str
    bold: bool


Line = tuple[Span, ...]


@dataclass(frozen=True)
class Frame:
    """A screen, and the seconds since the start at which it appeared."""

    at_seconds: float
    lines: tuple[Line, ...]


def record(command: list[str], prompt: str) -> list[Frame]:
    """Run ``command`` below a line that says ``prompt``, and return the screens it showed.

    Raises TimeoutError when it takes longer than five minutes, RuntimeError when it fails.
    """
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    stream.feed(prompt.encode() + b"\r\n")
    frames = [Frame(0.0, _lines(screen))]
    started = time.monotonic()
    pid, master = _spawn(command)
    try:
        while chunk := _read(master, started + DEADLINE_SECONDS - time.monotonic()):
            for part in re.split(CURSOR_BACK, chunk):
                stream.feed(part)
                lines = _lines(screen)
                if lines != frames[-1].lines:
                    frames.append(Frame(time.monotonic() - started, lines))
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(master)  # hangs up what still runs
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise RuntimeError(f"{command} ended with status {status}")
    return frames


def _spawn(command: list[str]) -> tuple[int, int]:
    """Start the command with a controlling terminal; return its pid and the master's descriptor."""
    pid, master = pty.fork()
    if pid == 0:
        try:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
            os.execvpe(command[0], command, {**os.environ, "TERM": "xterm-256color"})
        finally:
            os._exit(127)
    return pid, master


def _read(master: int, patience_seconds: float) -> bytes:
    """Read what is there, and what follows at once; nothing at the end."""
    if not select.select([master], [], [], max(0.0, patience_seconds))[0]:
        raise TimeoutError(f"the command has not ended within {DEADLINE_SECONDS:g} s")
    chunks = []
    while select.select([master], [], [], COALESCE_SECONDS if chunks else 0.0)[0]:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # Linux: the last process has closed the terminal
            chunk = b""
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks)


def _lines(screen: pyte.Screen) -> tuple[Line, ...]:
    return tuple(_line(screen, number) for number in range(screen.lines))


def _line(screen: pyte.Screen, number: int) -> Line:
    spans: list[Span] = []
    for column in range(screen.columns):
        cell = screen.buffer[number][column]
        last = spans[-1] if spans else None
        if last and (last.color, last.bold) == (cell.fg, cell.bold):
            spans[-1] = Span(last.text + cell.data, cell.fg, cell.bold)
        else:
            spans.append(Span(cell.data, cell.fg, cell.bold))
    while spans and not spans[-1].text.strip():
        spans.pop()
    if spans:
        spans[-1] = Span(spans[-1].text.rstrip(), spans[-1].color, spans[-1].bold)
    return tuple(spans)
