"""Lines of a file from its end."""

import io
import random
from pathlib import Path

import pytest

from orchestrator.system import lines_from_end as module
from orchestrator.system.lines_from_end import lines_from_end


@pytest.mark.parametrize("block_bytes", [1, 2, 7, 1 << 16])
def test_lines_come_in_reverse_with_their_offsets(
    monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """Empty lines, long lines and a torn last line come as they are, in any size of block."""
    monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    chance = random.Random(block_bytes)
    contents = [b"", b"\n", b"\n\n", b"a", b"a\n", b"\na", b"a\n\nbb\r\nccc"]
    contents += [bytes(chance.choices(b"ab\n", k=50)) for _ in range(50)]
    for content in contents:
        expected, offset = [], 0
        for line in io.BytesIO(content):
            expected.append((offset, line))
            offset += len(line)
        assert list(lines_from_end(io.BytesIO(content))) == expected[::-1]


def test_line_without_end_is_not_read_into_memory(tmp_path: Path) -> None:
    """A hole of a terabyte at the end of a file is refused after a few megabytes."""
    with open(tmp_path / "file", "w+b") as file:
        file.write(b"a\n")
        file.truncate(1 << 40)
        with pytest.raises(OSError, match="a line has more than"):
            next(lines_from_end(file))
