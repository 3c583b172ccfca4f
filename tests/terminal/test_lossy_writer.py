"""Output to a reader that may stop reading or disappear."""

import contextlib
import os
import select
import time
from collections.abc import Iterator

import pytest

from orchestrator.terminal.lossy_writer import QUEUED_PIECES, LossyWriter

PIECE = b"x" * 65536
PROMPT_SECONDS = 2.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe whose ends a test may close."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def test_output_arrives_complete_and_in_order(pipe: tuple[int, int]) -> None:
    """A reader gets every piece in order, and close() waits for the last one."""
    reader, writer = pipe
    lossy_writer = LossyWriter(writer)
    for number in range(QUEUED_PIECES // 2):
        lossy_writer.write(b"%d " % number)
    lossy_writer.close(PROMPT_SECONDS)
    expected = b"".join(b"%d " % number for number in range(QUEUED_PIECES // 2))
    assert os.read(reader, 1 << 16) == expected


def test_stopped_reader_delays_the_writer_once(pipe: tuple[int, int]) -> None:
    """Writing blocks for no longer than the patience; further output is dropped."""
    _, writer = pipe
    lossy_writer = LossyWriter(writer, patience_seconds=0.1)
    before = time.monotonic()
    for _ in range(20 * QUEUED_PIECES):
        lossy_writer.write(PIECE)
    lossy_writer.close(0.1)
    assert time.monotonic() - before < PROMPT_SECONDS


def test_slow_reader_within_its_patience_loses_nothing(pipe: tuple[int, int]) -> None:
    """A reader that begins late, but within the patience, gets every byte."""
    reader, writer = pipe
    lossy_writer = LossyWriter(writer, patience_seconds=10.0)
    size, child = 2 * QUEUED_PIECES * len(PIECE), os.fork()
    if child == 0:
        os.close(writer)
        got = 0
        while got < size and (data := os.read(reader, 1 << 20)):
            got += len(data)
        os._exit(got != size)
    for _ in range(2 * QUEUED_PIECES):
        lossy_writer.write(PIECE)
    lossy_writer.close(10.0)
    assert os.waitpid(child, 0)[1] == 0


def test_broken_pipe_is_ignored(pipe: tuple[int, int]) -> None:
    """Writing to a pipe without a reader raises nothing."""
    reader, writer = pipe
    os.close(reader)
    lossy_writer = LossyWriter(writer)
    for _ in range(2 * QUEUED_PIECES):
        lossy_writer.write(PIECE)
    lossy_writer.close(PROMPT_SECONDS)


def test_descriptor_made_non_blocking_by_another_process_loses_nothing(
    pipe: tuple[int, int],
) -> None:
    """All output arrives, although another process has made the shared file non-blocking."""
    reader, writer = pipe
    os.set_blocking(writer, False)
    lossy_writer = LossyWriter(writer)
    for _ in range(4):
        lossy_writer.write(PIECE)
    got = 0
    while got < 4 * len(PIECE):
        got += len(os.read(reader, 1 << 20))
    lossy_writer.close(PROMPT_SECONDS)


LONG_SECONDS = 60.0


def test_rest_of_a_line_is_awaited(pipe: tuple[int, int]) -> None:
    """A line that comes in pieces is written in one, so that no other output comes between."""
    reader, writer = pipe
    lossy_writer = LossyWriter(writer, line_seconds=LONG_SECONDS)
    lossy_writer.write(b"epoch")
    assert select.select([reader], [], [], 0.2)[0] == []
    for piece in (b" ", b"0", b"\n"):
        lossy_writer.write(piece)
    assert os.read(reader, 100) == b"epoch 0\n"
    lossy_writer.close(PROMPT_SECONDS)


def test_line_without_an_end_is_written_when_the_time_is_up(pipe: tuple[int, int]) -> None:
    """A prompt or a progress bar is not held back for ever."""
    reader, writer = pipe
    lossy_writer = LossyWriter(writer, line_seconds=0.01)
    lossy_writer.write(b"ready?")
    assert os.read(reader, 100) == b"ready?"
    lossy_writer.close(PROMPT_SECONDS)


@pytest.mark.parametrize("end", ["drain", "close"])
def test_end_of_the_output_does_not_wait_for_the_line(pipe: tuple[int, int], end: str) -> None:
    """What is there is written at once when no more is to come."""
    reader, writer = pipe
    lossy_writer = LossyWriter(writer, line_seconds=LONG_SECONDS)
    lossy_writer.write(b"half a line")
    getattr(lossy_writer, end)(LONG_SECONDS / 2)
    assert os.read(reader, 100) == b"half a line"
    lossy_writer.close(PROMPT_SECONDS)
