"""A line chart made of characters."""

from collections.abc import Sequence
from itertools import pairwise

# The dots of a Braille character: a column of four, and the column to its right.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BLANK = 0x2800


def line_chart(
    xs: Sequence[float], ys: Sequence[float], columns: int, rows: int, *, ascii_only: bool
) -> list[str]:
    """Return the lines of a chart of that many characters, the top one first.

    Points are joined, in the order of ``xs``. Braille characters have two dots beside each other
    and four above each other; with ``ascii_only`` a character is one dot.
    """
    across, down = (1, 1) if ascii_only else (2, 4)
    dots = _dots(xs, ys, columns * across, rows * down)
    cells = [[0] * columns for _ in range(rows)]
    for x, y in dots:
        cells[y // down][x // across] |= _DOTS[x % across][y % down]
    if ascii_only:
        return ["".join("*" if cell else " " for cell in line) for line in cells]
    return ["".join(chr(_BLANK + cell) for cell in line) for line in cells]


def _dots(
    xs: Sequence[float], ys: Sequence[float], width: int, height: int
) -> set[tuple[int, int]]:
    """Return the dots of the joined points, counted from the top left corner."""
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    places = sorted(
        (
            round((x - left) / ((right - left) or 1) * (width - 1)),
            round((high - y) / ((high - low) or 1) * (height - 1)),
        )
        for x, y in zip(xs, ys, strict=True)
    )
    dots = set(places)
    for (x, y), (next_x, next_y) in pairwise(places):
        steps = max(next_x - x, abs(next_y - y))
        dots |= {
            (x + round((next_x - x) * i / steps), y + round((next_y - y) * i / steps))
            for i in range(1, steps)
        }
    return dots
