"""Reads the lines of a file from its end, so that its length does not count."""

import errno
import os
from collections.abc import Iterator
from typing import BinaryIO

BLOCK_BYTES = 1 << 16
# A file of zeros, as a power failure or somebody else leaves it, is one line without end.
LONGEST_LINE_BYTES = 1 << 24


def lines_from_end(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the offset of each line and the line with its line break, the last line first.

    A last line without a line break is yielded as it is. Raises OSError, also for a line of more
    than ``LONGEST_LINE_BYTES``.
    """
    begin = file.seek(0, os.SEEK_END)
    # The pieces of a line whose beginning was not read yet, the last piece first.
    pieces: list[bytes] = []
    while begin > 0:
        size = min(BLOCK_BYTES, begin)
        begin -= size
        file.seek(begin)
        block = file.read(size)
        end = len(block)
        while (line_break := block.rfind(b"\n", 0, end)) >= 0:
            line = block[line_break + 1 : end] + b"".join(reversed(pieces))
            if line:
                yield begin + line_break + 1, line
            pieces = [b"\n"]
            end = line_break
        pieces.append(block[:end])
        if len(pieces) * BLOCK_BYTES > LONGEST_LINE_BYTES:
            raise OSError(errno.EFBIG, f"a line has more than {LONGEST_LINE_BYTES} bytes")
    if line := b"".join(reversed(pieces)):
        yield 0, line
