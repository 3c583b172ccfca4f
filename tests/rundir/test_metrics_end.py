"""The last step that metrics.jsonl records."""

import os
from pathlib import Path

import pytest

from orchestrator.rundir.metrics_end import last_recorded_step


@pytest.mark.parametrize(
    ("content", "step"),
    [
        (b'{"step": 4}\n{"step": 5}\n', 5),
        (b'{"step": 4}\n{"step": 5, "metr', 4),
        (b'{"step": 4}\n\xff\xfe\n', 4),
        (b'{"step": "many"}\n', None),
        (b"[3]\n", None),
        (b"", None),
    ],
)
def test_last_whole_line_counts(tmp_path: Path, content: bytes, step: int | None) -> None:
    """A line that the death of the process has cut is passed over."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    assert last_recorded_step(path) == step


def test_run_without_metrics_has_no_last_step(tmp_path: Path) -> None:
    """A script may record no metrics."""
    assert last_recorded_step(tmp_path / "metrics.jsonl") is None


def test_what_is_no_file_has_no_last_step(tmp_path: Path) -> None:
    """A FIFO is not waited for, and a link is not followed."""
    (tmp_path / "elsewhere").write_text('{"step": 4}\n')
    (tmp_path / "link").symlink_to("elsewhere")
    os.mkfifo(tmp_path / "fifo")
    assert last_recorded_step(tmp_path / "link") is None
    assert last_recorded_step(tmp_path / "fifo") is None
