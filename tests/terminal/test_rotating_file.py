"""Logs that keep their newest part, and their readers."""

import os
import time
from pathlib import Path

import pytest

from orchestrator.cli.attach import LONGEST_LINE_BYTES, Tail
from orchestrator.supervisor.attempt.output import Output, OutputTarget
from orchestrator.supervisor.recovery.output_tail import end_of
from orchestrator.terminal.lossy_writer import LossyWriter
from orchestrator.terminal.rotating_file import RotatingFile, older_path, read_end, read_since

LIMIT = 1000
DEADLINE_SECONDS = 60.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "output.log"


def line(number: int) -> bytes:
    return b"%09d\n" % number


def test_two_files_hold_the_newest_part(path: Path) -> None:
    """The sizes stay within the limit, and the two files follow one another."""
    file = RotatingFile(path, LIMIT)
    for number in range(1050):
        assert file.write(line(number)) == 10
        assert path.stat().st_size <= LIMIT
    file.close()
    whole = older_path(path).read_bytes() + path.read_bytes()
    assert whole == b"".join(map(line, range(900, 1050)))
    assert sorted(os.listdir(path.parent)) == ["output.1.log", "output.log"]


def test_end_of_a_log_continues_in_the_older_file(path: Path) -> None:
    """The lines that tell why a trainer has failed are found just after a rotation."""
    file = RotatingFile(path, LIMIT)
    for number in range(101):
        file.write(line(number))
    file.close()
    assert path.read_bytes() == line(100)
    assert read_end(path, 25) == line(98)[5:] + line(99) + line(100)
    assert end_of(path)[-2:] == ["000000099", "000000100"]


def test_link_in_place_of_the_log_is_refused(tmp_path: Path) -> None:
    """A link in the place of the log, or of a directory above it, leads no write and no read."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "output.log").write_bytes(line(1))
    (tmp_path / "output.log").symlink_to(other / "output.log")
    (tmp_path / "attempt").symlink_to(other)
    for path, real_parents in ((tmp_path / "output.log", 0), (tmp_path / "attempt/output.log", 1)):
        with pytest.raises(OSError, match="link"):
            RotatingFile(path, LIMIT, real_parents=real_parents).write(line(2))
        with pytest.raises(OSError, match="link"):
            read_end(path, 10, real_parents=real_parents)
        assert Tail(path, real_parents).last_lines(10) == Tail(path, real_parents).read() == b""
    assert (other / "output.log").read_bytes() == line(1)
    assert os.listdir(other) == ["output.log"]


def test_directory_that_became_a_link_is_not_rotated_in(tmp_path: Path) -> None:
    """A directory that is replaced by a link while the log is open leads no rotation elsewhere."""
    attempt, other = tmp_path / "attempt", tmp_path / "other"
    attempt.mkdir()
    other.mkdir()
    (other / "output.log").write_bytes(b"kept")
    file = RotatingFile(attempt / "output.log", LIMIT, real_parents=1)
    file.write(b"x" * LIMIT)
    attempt.rename(tmp_path / "moved")
    attempt.symlink_to(other)
    with pytest.raises(OSError, match="directory"):
        file.write(line(1))
    assert os.listdir(other) == ["output.log"]


@pytest.mark.parametrize("before", [0, 50, 99, 100])
def test_what_was_appended_is_read_over_a_rotation(path: Path, before: int) -> None:
    """What a detached supervisor said is printed whole, also where the log was rotated then."""
    file = RotatingFile(path, LIMIT)
    for number in range(before):
        file.write(line(number))
    size = path.stat().st_size if before else 0
    for number in range(before, before + 60):
        file.write(line(number))
    file.close()
    assert read_since(path, size) == b"".join(map(line, range(before, before + 60)))


def test_no_more_is_read_than_people_read(path: Path) -> None:
    """A log that another program has stretched is read to a limit, a line of it too."""
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert len(read_since(path, 0)) < 1 << 25
    tail = Tail(path)
    for _ in range(5):
        assert tail.lines() == []
    assert len(tail._rest) == LONGEST_LINE_BYTES


def test_attach_follows_a_log_over_its_rotation(path: Path) -> None:
    """Each line is read once, however reads and rotations fall together."""
    file, tail = RotatingFile(path, LIMIT), Tail(path)
    read = b""
    for number in range(1000):
        file.write(line(number))
        if number % 70 == 0:
            while data := tail.read():
                read += data
    while data := tail.read():
        read += data
    file.close()
    assert read == b"".join(map(line, range(1000)))


def test_output_of_a_trainer_is_rotated(path: Path) -> None:
    """A trainer that prints without end fills two files and no more, and loses no last line."""
    output = Output(
        path, OutputTarget(LossyWriter(os.open(os.devnull, os.O_WRONLY)), LIMIT), os.pipe()
    )
    writer = os.dup(output.write_descriptor)
    output.start()
    os.write(writer, line(0))
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not path.exists() or path.stat().st_size == 0:  # or all lines may be copied as one
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for number in range(1, 5000):
        os.write(writer, line(number))
    os.close(writer)
    output.finish(60)
    assert output.lost_bytes == 0
    assert read_end(path, 30) == b"".join(map(line, range(4997, 5000)))
    assert sorted(os.listdir(path.parent)) == ["output.1.log", "output.log"]
