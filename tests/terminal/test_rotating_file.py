"""Logs that keep their newest part, and their readers."""

import os
from pathlib import Path

import pytest

from orchestrator.cli.attach import Tail
from orchestrator.supervisor.attempt.output import Output, OutputTarget
from orchestrator.supervisor.recovery.output_tail import end_of
from orchestrator.terminal.lossy_writer import LossyWriter
from orchestrator.terminal.rotating_file import RotatingFile, older_path, read_end

LIMIT = 1000


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


def test_device_is_not_renamed(tmp_path: Path) -> None:
    """A link in the place of the log is written through, and stays."""
    link = tmp_path / "output.log"
    link.symlink_to("/dev/null")
    file = RotatingFile(link, LIMIT)
    for number in range(300):
        file.write(line(number))
    file.close()
    assert link.is_symlink()


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
    for number in range(5000):
        os.write(writer, line(number))
    os.close(writer)
    output.finish(60)
    assert output.lost_bytes == 0
    assert read_end(path, 30) == b"".join(map(line, range(4997, 5000)))
    assert sorted(os.listdir(path.parent)) == ["output.1.log", "output.log"]
