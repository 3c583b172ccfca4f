"""Small pieces: the states here are small too, and must still be read in several."""

import pytest

from orchestrator.checkpoint import verification


@pytest.fixture(autouse=True)
def _small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "READ_CHUNK_BYTES", 4096)
