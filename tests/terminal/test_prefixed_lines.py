"""Output of several processes, with the name of each before its lines."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.terminal.prefixed_lines import LONGEST_LINE_BYTES, PrefixedLines


class Recorded:
    """A sink that keeps what is written."""

    def __init__(self) -> None:
        self.text = b""

    def write(self, data: bytes) -> None:
        self.text += data

    def drain(self, timeout_seconds: float) -> None:
        """Nothing is queued."""


def prefixed(*pieces: bytes) -> bytes:
    sink = Recorded()
    lines = PrefixedLines(sink, "[1] ")
    for piece in pieces:
        lines.write(piece)
    lines.drain(0.0)
    return sink.text


def test_each_line_has_the_prefix() -> None:
    """Line ends of all kinds stay as they are, and the last line gets one."""
    assert prefixed(b"a\nb\r\n50%\r99%\rend") == b"[1] a\n[1] b\r\n[1] 50%\r[1] 99%\r[1] end\n"


@given(st.binary(max_size=200), st.integers(0, 200))
def test_pieces_make_no_difference(data: bytes, cut: int) -> None:
    """A line that arrives in two pieces is printed once, whole."""
    assert prefixed(data[:cut], data[cut:]) == prefixed(data)


def test_endless_line_is_cut() -> None:
    """Memory is bounded, whatever a rank prints, and a long line takes no longer than many."""
    text = prefixed(*[b"x" * 10_000] * 200)
    assert text.count(b"x") == 2_000_000
    assert max(map(len, text.splitlines())) < 2 * LONGEST_LINE_BYTES
