"""What is read from the end of the trainer's output."""

from pathlib import Path

import pytest

from orchestrator.rundir.error_record import MOST_CAUSES
from orchestrator.supervisor.recovery.output_tail import (
    END_BYTES,
    LAST_LINES,
    LONGEST_LINE,
    end_of,
    fatal_stack,
    last_lines,
    traceback_in,
)


@pytest.mark.parametrize(
    ("output", "lines"),
    [
        (b"", []),
        (b"one\ntwo\n\n", ["one", "two"]),
        (b"a line without its end", ["a line without its end"]),
        (b"\x1b[1;31mred\x1b[0m \x1b]0;title\x07text\n", ["red text"]),
        (b"\r 1%\r 50%\r100%\r\n", ["100%"]),
        (b"5/9\x08\x08\x08 6/9", [" 6/9"]),
        (b"bad \xff byte, bell \x07\n", ["bad � byte, bell"]),
        (b"\x1b[A\x1b[2Kmoved up\n", ["moved up"]),
    ],
)
def test_lines_look_as_on_a_terminal(tmp_path: Path, output: bytes, lines: list[str]) -> None:
    """Colours, titles and cursor movements are removed; a progress bar keeps its last state."""
    (tmp_path / "log").write_bytes(output)
    assert end_of(tmp_path / "log") == lines


def test_records_are_bounded(tmp_path: Path) -> None:
    """However much was printed, only its end is read, and less than that is kept."""
    log = tmp_path / "log"
    log.write_bytes(b"x" * 3 * END_BYTES + b"\n" + b"y" * 1000 + b"\n" + b"last\n" * LAST_LINES)
    lines = end_of(log)
    assert sum(map(len, lines)) <= END_BYTES
    assert last_lines(lines) == ["last"] * LAST_LINES
    assert last_lines(lines[:-1])[0] == "y" * LONGEST_LINE
    assert end_of(tmp_path / "missing") == []


TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "train.py", line 3, in <module>',
    "    main()",
    '  File "lib.py", line 9, in main',
    "    raise lib.Broken('x: y')",
    "lib.Broken: x: y",
]


def test_traceback_at_the_end() -> None:
    """The last traceback gives type without module, message and innermost frame."""
    found = traceback_in(["Traceback (most recent call last):", "KeyError: 1", "", *TRACEBACK])
    assert found is not None
    assert (found["type"], found["message"]) == ("Broken", "x: y")
    assert found["frame"] == "lib.py:9 main"
    assert found["traceback"].splitlines() == TRACEBACK


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["no traceback"],
        TRACEBACK[:-1],
        [*TRACEBACK[:-1], "?"],
        [*TRACEBACK, *["later"] * LAST_LINES],
    ],
)
def test_no_traceback_at_the_end(lines: list[str]) -> None:
    """A traceback that is incomplete, or far from the end, does not explain the end."""
    assert traceback_in(lines) is None


def test_chain_of_exceptions_is_bounded() -> None:
    """Of thousands of exceptions that led to each other the last few are kept."""
    link = "During handling of the above exception, another exception occurred:"
    found = traceback_in([*[*TRACEBACK, link] * 3000, *TRACEBACK])
    kept = 0
    while found is not None:
        found, kept = found["cause"], kept + 1
    assert kept == 1 + MOST_CAUSES


@pytest.mark.parametrize(("digits", "known"), [(2, True), (10, False), (5000, False)])
def test_number_of_an_error_is_bounded(digits: int, known: bool) -> None:
    """A number that no system has is no number of an error."""
    found = traceback_in([*TRACEBACK[:-1], f"OSError: [Errno {'2' * digits}] No such file"])
    assert found is not None
    assert (found["errno"] is not None) is known


def test_stack_of_the_thread_that_was_hit() -> None:
    """The current one of faulthandler's threads counts, and the last of two dumps."""
    dump = [
        "Fatal Python error: Bus error",
        "Thread 0x01 (most recent call first):",
        '  File "other.py", line 1 in wait',
        "Current thread 0x02 (most recent call first):",
        '  File "a.py", line 3 in f',
        '  File "a.py", line 9 in <module>',
        "Extension modules: torch._C (total: 1)",
    ]
    assert fatal_stack([*dump[:2], *dump]) == ["a.py:3 f", "a.py:9 <module>"]
    assert fatal_stack(dump[:3]) == ["other.py:1 wait"]
    assert fatal_stack(["Fatal Python error: Aborted"]) == []
    assert fatal_stack(dump[1:]) == []
