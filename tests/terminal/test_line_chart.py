"""Line charts made of characters."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.terminal.line_chart import line_chart

finite = st.floats(-1e300, 1e300)


def test_points_are_joined_from_the_first_to_the_last() -> None:
    """A falling line begins at the top left and ends at the bottom right."""
    assert line_chart([0, 4], [2, 0], 5, 3, ascii_only=True) == ["**   ", "  *  ", "   **"]
    assert line_chart([0, 1], [1, 0], 2, 1, ascii_only=False) == ["⠑⢄"]


def test_one_value_is_a_level_line() -> None:
    """A metric that does not change has its line at the top, and one point is one dot."""
    assert line_chart([1, 9], [5, 5], 4, 2, ascii_only=True) == ["****", "    "]
    assert line_chart([1], [5], 3, 2, ascii_only=True) == ["*  ", "   "]


@given(
    st.lists(st.tuples(finite, finite), min_size=1, max_size=20),
    st.integers(1, 30),
    st.integers(1, 8),
    st.booleans(),
)
def test_chart_has_its_size(
    points: list[tuple[float, float]], columns: int, rows: int, ascii_only: bool
) -> None:
    """Any finite values fit into any size."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    lines = line_chart(xs, ys, columns, rows, ascii_only=ascii_only)
    assert [len(line) for line in lines] == [columns] * rows
    assert any(set(line) - {" ", "\u2800"} for line in lines)
