"""Output to a reader that may stop reading, or go away."""

import contextlib
import os
import time
from collections.abc import Iterator

import pytest

from orchestrator.terminal.lossy_writer import WAITING_PIECES, LossyWriter

PIECE = b"x" * 65536
AT_ONCE_SECONDS = 2.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe; a test may close its ends."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def test_everything_arrives_in_order(pipe: tuple[int, int]) -> None:
    """A reader that reads gets all of it, and closing waits for the last piece."""
    reader, writer = pipe
    outlet = LossyWriter(writer)
    for number in range(WAITING_PIECES // 2):
        outlet.write(b"%d " % number)
    outlet.close(AT_ONCE_SECONDS)
    expected = b"".join(b"%d " % number for number in range(WAITING_PIECES // 2))
    assert os.read(reader, 1 << 16) == expected


def test_a_reader_that_stops_costs_its_patience_once(pipe: tuple[int, int]) -> None:
    """Writing never blocks for longer than the patience; what does not fit is dropped."""
    _, writer = pipe
    outlet = LossyWriter(writer, patience_seconds=0.1)
    before = time.monotonic()
    for _ in range(20 * WAITING_PIECES):
        outlet.write(PIECE)
    outlet.close(0.1)
    assert time.monotonic() - before < AT_ONCE_SECONDS


def test_a_slow_reader_loses_nothing_within_its_patience(pipe: tuple[int, int]) -> None:
    """A reader that begins late but in time gets every byte."""
    reader, writer = pipe
    outlet = LossyWriter(writer, patience_seconds=10.0)
    size, child = 2 * WAITING_PIECES * len(PIECE), os.fork()
    if child == 0:
        os.close(writer)
        got = 0
        while got < size and (data := os.read(reader, 1 << 20)):
            got += len(data)
        os._exit(got != size)
    for _ in range(2 * WAITING_PIECES):
        outlet.write(PIECE)
    outlet.close(10.0)
    assert os.waitpid(child, 0)[1] == 0


def test_a_reader_that_has_gone_is_forgotten(pipe: tuple[int, int]) -> None:
    """A broken pipe raises nothing."""
    reader, writer = pipe
    os.close(reader)
    outlet = LossyWriter(writer)
    for _ in range(2 * WAITING_PIECES):
        outlet.write(PIECE)
    outlet.close(AT_ONCE_SECONDS)


def test_a_descriptor_that_others_made_non_blocking_loses_nothing(pipe: tuple[int, int]) -> None:
    """The setting belongs to the open file, which other processes share."""
    reader, writer = pipe
    os.set_blocking(writer, False)
    outlet = LossyWriter(writer)
    for _ in range(4):
        outlet.write(PIECE)
    got = 0
    while got < 4 * len(PIECE):
        got += len(os.read(reader, 1 << 20))
    outlet.close(AT_ONCE_SECONDS)
