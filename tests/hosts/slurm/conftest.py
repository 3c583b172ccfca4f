"""The fixture of tests that ask scontrol."""

from pathlib import Path

import pytest

from tests.hosts.slurm.fake_scontrol import Controller


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Controller:
    monkeypatch.setattr("orchestrator.hosts.slurm.margins.CONTROLLER_SECONDS", 0.5)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return Controller(tmp_path)
