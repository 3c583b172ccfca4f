"""Messages and a countdown on a terminal where a script draws its progress bars.

A child writes to a real pseudo-terminal through the screen; what it wrote is drawn by pyte.
"""

import contextlib
import fcntl
import io
import os
import pty
import struct
import termios
from collections.abc import Callable

import pyte
import pytest
from rich.console import Console
from rich.progress import Progress
from tqdm import tqdm

from orchestrator.terminal.screen import Screen
from tests.support import DEADLINE_SECONDS

COLUMNS, LINES = 60, 12

Scenario = Callable[[Screen], None]


def shown(scenario: Scenario, lines_before: int = 0, term: str = "xterm") -> list[str]:
    """The lines that a person sees in the end, without empty ones at the bottom."""
    pid, master = pty.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
            os.environ["TERM"] = term
            screen = Screen(1)
            for number in range(lines_before):
                write(screen, f"line {number}\n")
            scenario(screen)
            screen.close(DEADLINE_SECONDS)
            os._exit(0)
        os._exit(1)
    data = b""
    with contextlib.suppress(OSError):  # the end of a terminal is EIO
        while piece := os.read(master, 65536):
            data += piece
    os.close(master)
    assert os.waitpid(pid, 0)[1] == 0, data
    terminal = pyte.Screen(COLUMNS, LINES)
    pyte.ByteStream(terminal).feed(data)
    return "\n".join(line.rstrip() for line in terminal.display).rstrip().split("\n")


def write(screen: Screen, text: str) -> None:
    """One write of the trainer, that the screen gets as one piece."""
    screen.write(text.encode())
    screen.drain(DEADLINE_SECONDS)


def say(screen: Screen, text: str) -> None:
    screen.say(text)
    screen.drain(DEADLINE_SECONDS)


def show_below(screen: Screen, text: str) -> None:
    screen.show_below(text)
    screen.drain(DEADLINE_SECONDS)


class Stream(io.StringIO):
    """Where a library of progress bars writes."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def write(self, text: str) -> int:
        write(self._screen, text)
        return len(text)


# From an empty terminal, and from one whose last line the cursor is on.
everywhere = pytest.mark.parametrize("lines_before", [0, 2 * LINES])


@everywhere
def test_a_message_stands_above_the_bar(lines_before: int) -> None:
    """A bar that is redrawn with a carriage return goes on below the message."""

    def scenario(screen: Screen) -> None:
        write(screen, "before\n\rbar 10%")
        say(screen, "one\ntwo")
        write(screen, "\rbar 20%")
        say(screen, "three")

    lines = shown(scenario, lines_before)
    assert lines[-5:] == ["before", "one", "two", "three", "bar 20%"]


@everywhere
def test_countdown_stands_below_the_bar_and_goes_without_a_trace(lines_before: int) -> None:
    """It moves down with the bar, is replaced in place, and nothing of it is left."""

    def counting(screen: Screen) -> None:
        write(screen, "\rbar 10%")
        show_below(screen, "saving: 28 s left")
        write(screen, "\rbar 20%\nnext")
        say(screen, "message")
        show_below(screen, "saving: 7 s left")

    def interrupted(screen: Screen) -> None:
        counting(screen)
        os._exit(0)

    def ended(screen: Screen) -> None:
        counting(screen)
        show_below(screen, "")
        write(screen, " bar")

    assert shown(interrupted, lines_before)[-4:] == [
        "bar 20%",
        "message",
        "next",
        "saving: 7 s left",
    ]
    assert shown(ended, lines_before)[-3:] == ["bar 20%", "message", "next bar"]


@everywhere
def test_nested_bars_of_tqdm_stay_intact(lines_before: int) -> None:
    """Messages and a countdown come while tqdm goes up and down between its bars."""

    def scenario(screen: Screen) -> None:
        options = {"file": Stream(screen), "ncols": COLUMNS - 2, "mininterval": 0, "ascii": True}
        outer = tqdm(range(3), desc="epochs", position=0, **options)
        for epoch in outer:
            for batch in tqdm(range(2), desc="batches", position=1, leave=False, **options):
                say(screen, f"epoch {epoch}, batch {batch}")
                show_below(screen, f"{9 - epoch} s left")
        say(screen, "done")

    lines = shown(scenario, lines_before)
    messages = [f"epoch {epoch}, batch {batch}" for epoch in range(3) for batch in range(2)]
    assert [line for line in lines if line.startswith(("epoch ", "done"))] == [*messages, "done"]
    bars = [line for line in lines if "|" in line]
    assert len(bars) == 1
    assert bars[0].startswith("epochs: 100%")
    # tqdm has left its bar for good by then.
    assert lines[-2:] == [bars[0], "done"]


@everywhere
def test_progress_of_rich_stays_intact(lines_before: int) -> None:
    """Rich draws several lines anew each time: messages must not get between them."""

    def scenario(screen: Screen) -> None:
        console = Console(file=Stream(screen), force_terminal=True, width=COLUMNS)
        with Progress(console=console, auto_refresh=False) as progress:
            tasks = [progress.add_task(name, total=2) for name in ("epochs", "batches", "files")]
            for round_ in range(2):
                for task in tasks:
                    progress.advance(task)
                progress.refresh()
                show_below(screen, f"{9 - round_} s left")
                say(screen, f"message {round_}")

    lines = shown(scenario, lines_before)
    at = lines.index("message 0")
    assert lines[at : at + 2] == ["message 0", "message 1"]
    assert [line.split()[0] for line in lines[at + 2 :] if "100%" in line] == [
        "epochs",
        "batches",
        "files",
    ]
    assert sum("100%" in line for line in lines) == 3


def test_the_shell_goes_on_below_a_bar_that_was_left() -> None:
    """At the end the cursor is on a line of its own."""

    def scenario(screen: Screen) -> None:
        write(screen, "outer\n\rinner\x1b[A")
        screen.close(DEADLINE_SECONDS)
        os.write(1, b"prompt")
        os._exit(0)

    assert shown(scenario) == ["outer", "inner", "prompt"]


def test_a_long_message_takes_the_lines_that_it_needs() -> None:
    """What the terminal wraps does not run into the bar."""

    def scenario(screen: Screen) -> None:
        write(screen, "bar 10%")
        say(screen, "x" * (COLUMNS + 5))
        write(screen, "\rbar 20%")

    assert shown(scenario) == ["x" * COLUMNS, "xxxxx", "bar 20%"]


@pytest.mark.parametrize(
    "text", ["größer", "\x1b[31mred\x1b[0m bar", "\x1b]0;title\x07bar"], ids=["utf8", "csi", "osc"]
)
def test_nothing_comes_between_the_bytes_of_a_character(text: str) -> None:
    """A character or an escape sequence that arrives in pieces is shown whole."""

    def scenario(screen: Screen) -> None:
        for position in range(len(text.encode())):
            screen.write(text.encode()[position : position + 1])
            screen.drain(DEADLINE_SECONDS)
            say(screen, f"message {position}")
            show_below(screen, f"{position}")

    plain = {"größer": "größer"}.get(text, "red bar" if "red" in text else "bar")
    assert plain in shown(scenario)


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines() -> None:
    """No escape sequence, no countdown, and the message on a line of its own."""

    def scenario(screen: Screen) -> None:
        write(screen, "bar 10%")
        say(screen, "message")
        show_below(screen, "5 s left")
        write(screen, "bar 20%")

    assert shown(scenario, term="dumb") == ["bar 10%", "message", "bar 20%"]
