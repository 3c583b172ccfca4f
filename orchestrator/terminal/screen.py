"""A terminal that the trainer's output, the supervisor's messages and a countdown share.

A progress bar leaves the cursor inside its own lines and continues to draw from there; a bar of
several lines moves the cursor up first. Other output must leave these lines and the cursor
unchanged. So a message is inserted above the bar, and the countdown, called the footer, is drawn
below it and removed before the trainer's next output. Only the writing thread tracks the cursor.
"""

import contextlib
import os
import re
from collections import deque

from orchestrator.terminal.lossy_writer import LossyWriter

# A reader that is slow for a moment loses nothing; one that has stopped cannot block the trainer.
READER_PATIENCE_SECONDS = 1.0
# The run's supervisor.log contains the messages that are dropped here.
QUEUED_MESSAGES = 256

_MOVE = re.compile(rb"\n|\x1b\[(\d{0,6})([AB])")
_STYLE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
# The beginning of an escape sequence or of a character, which no other output may interrupt.
_INCOMPLETE = re.compile(
    rb"(?:\x1b(?:\[[0-?]{0,200}[ -/]{0,20}|\][^\x07\x1b]{0,200})?"
    rb"|[\xc0-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf7][\x80-\xbf]{0,2})\Z"
)
_SAVE, _RESTORE, _DOWN_SCROLLING = b"\x1b7", b"\x1b8", b"\x1bD"
_CLEAR_TO_END = b"\x1b[K"
_PLAIN = b"\x1b[0m"


class Screen:
    """One terminal, written to by a thread so that no message waits for the reader."""

    def __init__(
        self, descriptor: int, patience_seconds: float | None = READER_PATIENCE_SECONDS
    ) -> None:
        """``patience_seconds`` is how long a slow reader may block ``write``; None: for ever."""
        self._descriptor = descriptor
        self._can_move_cursor = os.environ.get("TERM", "dumb") != "dumb"
        self._messages: deque[bytes] = deque(maxlen=QUEUED_MESSAGES)
        self._footer = self._shown = ""
        self._ends = False
        self._held = b""
        self._at_line_start = True
        self._above = self._below = 0
        """The number of lines of the progress bar above and below the cursor."""
        self._footer_offset: int | None = None
        """The distance of the footer below the cursor in lines; None while it is not shown."""
        self._writer = LossyWriter(descriptor, patience_seconds, self._compose)

    def write(self, data: bytes) -> None:
        """Print output of the trainer."""
        self._writer.write(data)

    def print_message(self, text: str) -> None:
        """Print a message above the trainer's progress bar."""
        self._messages.append(text.rstrip("\n").encode(errors="backslashreplace"))
        self._writer.wake()

    def set_footer(self, text: str) -> None:
        """Show ``text`` below all other output, in place of the last footer; '' removes it."""
        self._footer = text
        self._writer.wake()

    def drain(self, timeout_seconds: float) -> None:
        """Wait until all queued output has been written or the timeout has passed."""
        self._writer.drain(timeout_seconds)

    def close(self, timeout_seconds: float) -> None:
        """Write the queued output until the timeout, and leave the cursor on a fresh line."""
        self._footer, self._ends = "", True
        self._writer.wake()
        self._writer.close(timeout_seconds)

    # --- called in the writing thread --------------------------------------------------------

    def _compose(self, piece: bytes) -> bytes:
        if not piece and not self._messages and self._footer == self._shown and not self._ends:
            return b""
        self._shown = self._footer
        parts = [self._erase_footer(), self._pass_on(piece)]
        while self._messages:
            parts.append(self._message(self._messages.popleft()))
        if self._footer and self._may_move_cursor():
            parts.append(self._draw_footer(self._footer))
        if self._ends:
            parts.append(self._move_below_bar())
        return b"".join(parts)

    def _pass_on(self, piece: bytes) -> bytes:
        data = self._held + piece
        incomplete = _INCOMPLETE.search(data)
        end = incomplete.start() if incomplete else len(data)
        data, self._held = data[:end], data[end:]
        if data:
            self._track_cursor(data)
        return data

    def _track_cursor(self, data: bytes) -> None:
        """Update the position of the cursor within the bar from the output."""
        went_up = False
        for move in _MOVE.finditer(data):
            count = int(move[1] or 1) if move[2] else 1
            if move[2] == b"A":
                went_up = True
                self._above = max(0, self._above - count)
                # A terminal moves its cursor no further than to its first line.
                self._below = min(self._below + count, self._size().lines)
            else:
                # Below the bar's last line the terminal scrolls, and the bar moves up.
                lines = min(count, self._below)
                self._above += lines
                self._below -= lines
        self._at_line_start = data.endswith(b"\n")
        if self._at_line_start and not self._below and not went_up:
            self._above = 0

    def _message(self, text: bytes) -> bytes:
        rows = self._rows(text)
        if self._at_line_start and not self._below:
            # The carriage return makes the message overwrite the terminal's echo of ^C.
            return (b"\r" if self._may_move_cursor() else b"") + text + b"\n"
        room = rows + self._below
        if not self._may_move_cursor() or room + self._above >= self._size().lines:
            # The message goes below the bar, and the trainer redraws the bar below the message.
            return self._move_below_bar() + text + b"\n"
        return b"".join(
            (
                self._make_room(room),
                _SAVE + _up(self._above) + b"\r" + _PLAIN + b"\x1b[%dL" % rows + text,
                _RESTORE + _down(rows),
            )
        )

    def _move_below_bar(self) -> bytes:
        """Return the output that moves the cursor to a fresh line below the bar."""
        lines = 0 if self._at_line_start and not self._below else self._below + 1
        self._at_line_start, self._above, self._below = True, 0, 0
        return b"\n" * lines

    def _draw_footer(self, text: str) -> bytes:
        offset = 0 if self._at_line_start and not self._below else self._below + 1
        self._footer_offset = offset
        shown = text[: self._size().columns - 1].encode(errors="backslashreplace")
        line = b"\r" + _PLAIN + shown + _CLEAR_TO_END
        return self._make_room(offset) + _SAVE + _down(offset) + line + _RESTORE

    def _erase_footer(self) -> bytes:
        if self._footer_offset is None:
            return b""
        offset, self._footer_offset = self._footer_offset, None
        return _SAVE + _down(offset) + b"\r" + _CLEAR_TO_END + _RESTORE

    def _make_room(self, rows: int) -> bytes:
        """Return the output that scrolls until ``rows`` lines are below the cursor.

        The cursor stays in its line of text and in its column.
        """
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

    def _may_move_cursor(self) -> bool:
        """Return whether this process may move the cursor.

        While the process is in the background, the cursor belongs to the shell.
        """
        with contextlib.suppress(OSError):
            return self._can_move_cursor and os.tcgetpgrp(self._descriptor) == os.getpgrp()
        return False


def _up(rows: int) -> bytes:
    return b"\x1b[%dA" % rows if rows else b""


def _down(rows: int) -> bytes:
    return b"\x1b[%dB" % rows if rows else b""
