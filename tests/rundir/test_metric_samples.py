"""Samples of a metric from a file of any length."""

import json
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.rundir.metric_samples import sample_metrics


def line(step: int, poll: bool = False, **metrics: object) -> bytes:
    return json.dumps({"step": step, "poll": poll, "metrics": metrics}).encode() + b"\n"


def test_samples_are_means_over_equal_parts(tmp_path: Path) -> None:
    """Each line counts in one part, and a part without a value is left out."""
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"".join(line(step, loss=100.0 + step % 2) for step in range(100, 500)))
    (samples,) = sample_metrics(file, 10)
    assert len(samples.steps) == 10
    assert (samples.steps[0], samples.steps[-1]) == (119.5, 479.5)
    assert set(samples.values) == {100.5}
    file.write_bytes(
        line(1, loss=1) + b"torn {\n" * 20 + line(2, loss=float("nan")) + line(3, loss=3)
    )
    (samples,) = sample_metrics(file, 10)
    assert samples.steps == [1, 3]


def test_values_that_no_chart_can_have_are_left_out(tmp_path: Path) -> None:
    """Two of the largest numbers have neither a sum nor a difference."""
    file = tmp_path / "metrics.jsonl"
    values = (1.5e308, -1.5e308, 1, 2, float("inf"))
    file.write_bytes(b"".join(line(step, loss=value) for step, value in enumerate(values)))
    (samples,) = sample_metrics(file, 5)
    assert samples.values == [1, 2]


def test_loss_of_the_training_is_preferred(tmp_path: Path) -> None:
    """Of several metrics the loss is shown, and before a loss of an evaluation."""
    file = tmp_path / "metrics.jsonl"
    both = [line(step, poll=True, eval_loss=1, accuracy=2, train_loss=3) for step in (1, 2)]
    file.write_bytes(b"".join(both))
    names = [samples.name for samples in sample_metrics(file, 2)]
    assert names == ["train_loss", "eval_loss", "accuracy"]
    file.write_bytes(b"".join([*both, line(3, loss=1), line(4, loss=1)]))
    assert sample_metrics(file, 4)[0].name == "loss"


def test_length_of_the_file_does_not_count(tmp_path: Path) -> None:
    """A file with a hole of a terabyte between two lines is sampled like any other."""
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(line(1, loss=1))
    os.truncate(file, 1 << 40)
    assert sample_metrics(file, 100) == []
    with open(file, "ab") as end:
        end.write(b"\n" + line(2, loss=2))
    assert sample_metrics(file, 100) == []


def test_nothing_that_is_no_file_is_read(tmp_path: Path) -> None:
    """A missing file, a FIFO and an empty file have no samples."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    assert [sample_metrics(tmp_path / name, 5) for name in ("no", "fifo", "empty")] == [[]] * 3


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=50),
            st.builds(line, st.integers(-9, 9), loss=st.one_of(st.floats(), st.text(), st.none())),
        ),
        max_size=12,
    )
)
def test_any_content_is_borne(tmp_path_factory: object, pieces: list[bytes]) -> None:
    """Torn lines, wrong types and binary give samples or none, and no traceback."""
    file = Path(tmp_path_factory.getbasetemp()) / "any.jsonl"  # type: ignore[attr-defined]
    file.write_bytes(b"".join(pieces))
    sample_metrics(file, 4)
