"""Runs with checkpoints, whose small states are still read in several pieces."""

from pathlib import Path

import pytest

from orchestrator.checkpoint import verification
from orchestrator.checkpoint.store import Store
from tests.checkpoint.support import new_store


@pytest.fixture(autouse=True)
def _small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "READ_CHUNK_BYTES", 4096)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run with checkpoints of the steps 100, 200 and 300."""
    return new_store(tmp_path / "run", (100, 200, 300))


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    return new_store(tmp_path / "run")
