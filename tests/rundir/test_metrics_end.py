"""The last step that metrics.jsonl records."""

import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.rundir.metrics_end import last_recorded_step


@pytest.mark.parametrize(
    ("content", "step"),
    [
        (b'{"step": 4}\n{"step": 5, "time": "noon"}\n', (5, "noon")),
        (b'{"step": 4}\n{"step": 5, "metr', (4, None)),
        (b'{"step": 4, "time": 12}\n\xff\xfe\n', (4, None)),
        (b'{"step": "many"}\n', None),
        (b"[3]\n", None),
        (b"", None),
    ],
)
def test_last_whole_line_counts(tmp_path: Path, content: bytes, step: Any) -> None:
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
