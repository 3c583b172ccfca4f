"""A terminal that the trainer's output, our messages and a countdown share.

A progress bar leaves the cursor in the middle of what it has drawn, and draws on from there; one of
several lines goes up first. Whatever we print between must leave these lines, and the cursor in
them, as they were. So a message is inserted above them, and the countdown stands below them and is
taken away before the trainer prints on. Only the writing thread knows where the cursor is.
"""

import contextlib
import os
import re
from collections import deque

from orchestrator.terminal.lossy_writer import LossyWriter

# A reader that is slow for a moment loses nothing; one that has stopped does not stop the trainer.
READER_PATIENCE_SECONDS = 1.0
# What nobody has read by then is in the run's supervisor.log.
WAITING_MESSAGES = 256

_MOVE = re.compile(rb"\n|\x1b\[(\d*)([AB])")
_STYLE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
# The beginning of an escape sequence or of a character: nothing may come between it and its rest.
_INCOMPLETE = re.compile(
    rb"(?:\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]{0,200})?"
    rb"|[\xc0-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf7][\x80-\xbf]{0,2})\Z"
)
_SAVE, _RESTORE, _DOWN_SCROLLING = b"\x1b7", b"\x1b8", b"\x1bD"
_CLEAR_TO_END = b"\x1b[K"
_PLAIN = b"\x1b[0m"


class Screen:
    """One terminal, on which nothing that is said waits for a reader."""

    def __init__(
        self, descriptor: int, patience_seconds: float | None = READER_PATIENCE_SECONDS
    ) -> None:
        """``patience_seconds`` is how long a slow reader may hold up ``write``; None for ever."""
        self._descriptor = descriptor
        self._can_move = os.environ.get("TERM", "dumb") != "dumb"
        self._said: deque[bytes] = deque(maxlen=WAITING_MESSAGES)
        self._footer = self._shown = ""
        self._ends = False
        self._held = b""
        self._at_line_start = True
        self._above = self._below = 0
        """Lines of the bar that the cursor is in, above and below it."""
        self._footer_offset: int | None = None
        """How many lines below the cursor the footer stands, while it is shown."""
        self._outlet = LossyWriter(descriptor, patience_seconds, self._compose)

    def write(self, data: bytes) -> None:
        """Pass on what the trainer has printed."""
        self._outlet.write(data)

    def say(self, text: str) -> None:
        """Print lines of ours where they do not harm those of the trainer."""
        self._said.append(text.rstrip("\n").encode(errors="backslashreplace"))
        self._outlet.wake()

    def show_below(self, text: str) -> None:
        """Keep a line below everything, in place of the last; none when ``text`` is empty."""
        self._footer = text
        self._outlet.wake()

    def drain(self, timeout_seconds: float) -> None:
        """Wait at most so long until what was handed over has been written."""
        self._outlet.drain(timeout_seconds)

    def close(self, timeout_seconds: float) -> None:
        """The same, at the end; what comes then begins on a line of its own."""
        self._footer, self._ends = "", True
        self._outlet.wake()
        self._outlet.close(timeout_seconds)

    # --- in the writing thread ---------------------------------------------------------------

    def _compose(self, piece: bytes) -> bytes:
        if not piece and not self._said and self._footer == self._shown and not self._ends:
            return b""
        self._shown = self._footer
        parts = [self._without_footer(), self._pass_on(piece)]
        while self._said:
            parts.append(self._message(self._said.popleft()))
        if self._footer and self._may_move():
            parts.append(self._with_footer(self._footer))
        if self._ends:
            parts.append(self._leave())
        return b"".join(parts)

    def _pass_on(self, piece: bytes) -> bytes:
        data = self._held + piece
        incomplete = _INCOMPLETE.search(data)
        end = incomplete.start() if incomplete else len(data)
        data, self._held = data[:end], data[end:]
        if data:
            self._follow(data)
        return data

    def _follow(self, data: bytes) -> None:
        """Learn from what is printed where the cursor is in the bar."""
        went_up = False
        for move in _MOVE.finditer(data):
            count = int(move[1] or 1) if move[2] else 1
            if move[2] == b"A":
                went_up = True
                self._above = max(0, self._above - count)
                self._below += count
            else:
                # Beyond the lowest line everything moves up, and the bar with it.
                inside = min(count, self._below)
                self._above += inside
                self._below -= inside
        self._at_line_start = data.endswith(b"\n")
        if self._at_line_start and not self._below and not went_up:
            self._above = 0

    def _message(self, text: bytes) -> bytes:
        rows = self._rows(text)
        if self._at_line_start and not self._below:
            # Over the ^C that the terminal has echoed.
            return (b"\r" if self._may_move() else b"") + text + b"\n"
        room = rows + self._below
        if not self._may_move() or room + self._above >= self._size().lines:
            # A bar is then drawn anew below it.
            return self._leave() + text + b"\n"
        return b"".join(
            (
                self._make_room(room),
                _SAVE + _up(self._above) + b"\r" + _PLAIN + b"\x1b[%dL" % rows + text,
                _RESTORE + _down(rows),
            )
        )

    def _leave(self) -> bytes:
        """Go to a new line below the bar."""
        lines = 0 if self._at_line_start and not self._below else self._below + 1
        self._at_line_start, self._above, self._below = True, 0, 0
        return b"\n" * lines

    def _with_footer(self, text: str) -> bytes:
        offset = 0 if self._at_line_start and not self._below else self._below + 1
        self._footer_offset = offset
        shown = text[: self._size().columns - 1].encode(errors="backslashreplace")
        line = b"\r" + _PLAIN + shown + _CLEAR_TO_END
        return self._make_room(offset) + _SAVE + _down(offset) + line + _RESTORE

    def _without_footer(self) -> bytes:
        if self._footer_offset is None:
            return b""
        offset, self._footer_offset = self._footer_offset, None
        return _SAVE + _down(offset) + b"\r" + _CLEAR_TO_END + _RESTORE

    def _make_room(self, rows: int) -> bytes:
        """Have so many lines below the cursor; it stays with the line and column where it is."""
        return _DOWN_SCROLLING * rows + _up(rows)

    def _rows(self, text: bytes) -> int:
        columns = self._size().columns
        lines = _STYLE.sub("", text.decode(errors="replace")).split("\n")
        return sum(max(1, -(-len(line) // columns)) for line in lines)

    def _size(self) -> os.terminal_size:
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(self._descriptor)
            if size.columns > 1:
                return size
        return os.terminal_size((80, 24))

    def _may_move(self) -> bool:
        """Whether the cursor is ours: the shell has it while we are in the background."""
        with contextlib.suppress(OSError):
            return self._can_move and os.tcgetpgrp(self._descriptor) == os.getpgrp()
        return False


def _up(rows: int) -> bytes:
    return b"\x1b[%dA" % rows if rows else b""


def _down(rows: int) -> bytes:
    return b"\x1b[%dB" % rows if rows else b""
