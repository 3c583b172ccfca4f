"""Text for people."""

import io
import sys

import pytest

from orchestrator.terminal.printing import print_text


class Unbuffered(io.RawIOBase):
    """A file that keeps each write by itself."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.written.append(bytes(data))  # type: ignore[call-overload]
        return len(self.written[-1])


def test_line_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads or ranks that print at once do not share a line, though nothing is buffered."""
    file = Unbuffered()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(file, write_through=True))  # type: ignore[arg-type]
    print_text("cannot save", to_stderr=True)
    assert [data for data in file.written if data] == [b"cannot save\n"]
