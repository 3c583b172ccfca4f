"""The run directory that these tests share."""

from pathlib import Path

import pytest

from orchestrator.rundir.paths import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Return a run directory that has been made."""
    run = RunDir(tmp_path / "run")
    run.create()
    return run
