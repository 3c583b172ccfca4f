"""Messages and a countdown on a terminal on which a script draws progress bars.

A child process writes to a real pseudo-terminal through the screen, and pyte renders its output.
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


def display_after(scenario: Scenario, lines_before: int = 0, term: str = "xterm") -> list[str]:
    """Return the lines that the terminal shows in the end, without empty lines at the bottom."""
    terminal = pyte.Screen(COLUMNS, LINES)
    pyte.ByteStream(terminal).feed(output_of(scenario, lines_before, term))
    return "\n".join(line.rstrip() for line in terminal.display).rstrip().split("\n")


def output_of(scenario: Scenario, lines_before: int = 0, term: str = "xterm") -> bytes:
    """Return what is written to the terminal."""
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
    return data


def write(screen: Screen, text: str) -> None:
    """Write trainer output that the screen gets as one piece."""
    screen.write(text.encode())
    screen.drain(DEADLINE_SECONDS)


def print_message(screen: Screen, text: str) -> None:
    screen.print_message(text)
    screen.drain(DEADLINE_SECONDS)


def set_footer(screen: Screen, text: str) -> None:
    screen.set_footer(text)
    screen.drain(DEADLINE_SECONDS)


class Stream(io.StringIO):
    """A file for a progress bar library that writes to the screen."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def write(self, text: str) -> int:
        write(self._screen, text)
        return len(text)


# On an empty terminal, and on one whose cursor is in the last line.
from_top_and_bottom = pytest.mark.parametrize("lines_before", [0, 2 * LINES])


@from_top_and_bottom
def test_message_is_inserted_above_the_bar(lines_before: int) -> None:
    """A bar that redraws itself with a carriage return stays below the messages."""

    def scenario(screen: Screen) -> None:
        write(screen, "before\n\rbar 10%")
        print_message(screen, "one\ntwo")
        write(screen, "\rbar 20%")
        print_message(screen, "three")

    lines = display_after(scenario, lines_before)
    assert lines[-5:] == ["before", "one", "two", "three", "bar 20%"]


@from_top_and_bottom
def test_countdown_stays_below_the_bar_and_is_erased(lines_before: int) -> None:
    """The countdown moves down with the bar, is replaced in place, and leaves nothing behind."""

    def counting(screen: Screen) -> None:
        write(screen, "\rbar 10%")
        set_footer(screen, "saving: 28 s left")
        write(screen, "\rbar 20%\nnext")
        print_message(screen, "message")
        set_footer(screen, "saving: 7 s left")

    def interrupted(screen: Screen) -> None:
        counting(screen)
        os._exit(0)

    def ended(screen: Screen) -> None:
        counting(screen)
        set_footer(screen, "")
        write(screen, " bar")

    assert display_after(interrupted, lines_before)[-4:] == [
        "bar 20%",
        "message",
        "next",
        "saving: 7 s left",
    ]
    assert display_after(ended, lines_before)[-3:] == ["bar 20%", "message", "next bar"]


@from_top_and_bottom
def test_nested_tqdm_bars_stay_intact(lines_before: int) -> None:
    """Messages and a countdown do not damage the nested bars of tqdm."""

    def scenario(screen: Screen) -> None:
        options = {"file": Stream(screen), "ncols": COLUMNS - 2, "mininterval": 0, "ascii": True}
        outer = tqdm(range(3), desc="epochs", position=0, **options)
        for epoch in outer:
            for batch in tqdm(range(2), desc="batches", position=1, leave=False, **options):
                print_message(screen, f"epoch {epoch}, batch {batch}")
                set_footer(screen, f"{9 - epoch} s left")
        print_message(screen, "done")

    lines = display_after(scenario, lines_before)
    messages = [f"epoch {epoch}, batch {batch}" for epoch in range(3) for batch in range(2)]
    assert [line for line in lines if line.startswith(("epoch ", "done"))] == [*messages, "done"]
    bars = [line for line in lines if "|" in line]
    assert len(bars) == 1
    assert bars[0].startswith("epochs: 100%")
    # tqdm has finished its bar by then.
    assert lines[-2:] == [bars[0], "done"]


@from_top_and_bottom
def test_rich_progress_stays_intact(lines_before: int) -> None:
    """Messages do not damage the lines that rich redraws at each refresh."""

    def scenario(screen: Screen) -> None:
        console = Console(file=Stream(screen), force_terminal=True, width=COLUMNS)
        with Progress(console=console, auto_refresh=False) as progress:
            tasks = [progress.add_task(name, total=2) for name in ("epochs", "batches", "files")]
            for round_ in range(2):
                for task in tasks:
                    progress.advance(task)
                progress.refresh()
                set_footer(screen, f"{9 - round_} s left")
                print_message(screen, f"message {round_}")

    lines = display_after(scenario, lines_before)
    at = lines.index("message 0")
    assert lines[at : at + 2] == ["message 0", "message 1"]
    assert [line.split()[0] for line in lines[at + 2 :] if "100%" in line] == [
        "epochs",
        "batches",
        "files",
    ]
    assert sum("100%" in line for line in lines) == 3


def test_shell_prompt_is_below_an_unfinished_bar() -> None:
    """At the end the cursor is on a fresh line below the bar."""

    def scenario(screen: Screen) -> None:
        write(screen, "outer\n\rinner\x1b[A")
        screen.close(DEADLINE_SECONDS)
        os.write(1, b"prompt")
        os._exit(0)

    assert display_after(scenario) == ["outer", "inner", "prompt"]


def test_wrapped_message_does_not_overlap_the_bar() -> None:
    """A message that the terminal wraps gets all the lines that it needs."""

    def scenario(screen: Screen) -> None:
        write(screen, "bar 10%")
        print_message(screen, "x" * (COLUMNS + 5))
        write(screen, "\rbar 20%")

    assert display_after(scenario) == ["x" * COLUMNS, "xxxxx", "bar 20%"]


@pytest.mark.parametrize(
    "text", ["größer", "\x1b[31mred\x1b[0m bar", "\x1b]0;title\x07bar"], ids=["utf8", "csi", "osc"]
)
def test_character_or_escape_sequence_in_pieces_stays_intact(text: str) -> None:
    """No other output interrupts a character or an escape sequence that arrives in pieces."""

    def scenario(screen: Screen) -> None:
        for position in range(len(text.encode())):
            screen.write(text.encode()[position : position + 1])
            screen.drain(DEADLINE_SECONDS)
            print_message(screen, f"message {position}")
            set_footer(screen, f"{position}")

    plain = {"größer": "größer"}.get(text, "red bar" if "red" in text else "bar")
    assert plain in display_after(scenario)


def test_dumb_terminal_gets_plain_lines() -> None:
    """A dumb terminal gets no escape sequences, no countdown, and each message on its own line."""

    def scenario(screen: Screen) -> None:
        write(screen, "bar 10%")
        print_message(screen, "message")
        set_footer(screen, "5 s left")
        write(screen, "bar 20%")

    assert display_after(scenario, term="dumb") == ["bar 10%", "message", "bar 20%"]


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[" + "1" * 5000 + "A",
        "\x1b[900000000000A",
        "\x1b[999999A" * 5000,
        "\x1b[" + "1;" * 100_000,
        "\x1b[999999A\x1b[999999B" * 1000,
    ],
    ids=["digits", "far", "often", "without end", "up and down"],
)
def test_senseless_movements_of_the_cursor_do_no_harm(text: str) -> None:
    """Whatever a script prints, messages come through, with no more lines than a terminal has."""

    def scenario(screen: Screen) -> None:
        write(screen, text)
        print_message(screen, "a message")
        set_footer(screen, "a footer")
        write(screen, "\x1b[0m\n")

    output = output_of(scenario)
    assert b"a message" in output
    assert len(output) < len(text) + 2000
