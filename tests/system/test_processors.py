"""How many processes a machine can train with."""

import os
from pathlib import Path

import pytest

from orchestrator.system.processors import count_cpus, count_gpus

LIST = "GPU 0: NVIDIA H200 (UUID: a)\nGPU 1: NVIDIA H200 (UUID: b)\n"


def test_cpus_are_those_that_the_process_may_use() -> None:
    """A process that is bound to some CPUs counts these."""
    assert 1 <= count_cpus() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("visible", "count"), [("0,1,2", 3), ("", 0), ("-1", 0), ("GPU-a", 1)])
def test_visible_devices_count(monkeypatch: pytest.MonkeyPatch, visible: str, count: int) -> None:
    """What CUDA_VISIBLE_DEVICES hides is not trained with."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus() == count


@pytest.mark.parametrize(("script", "count"), [(f"printf '{LIST}'", 2), ("exit 9", 0), (None, 0)])
def test_nvidia_smi_counts_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str | None, count: int
) -> None:
    """Without the variable nvidia-smi is asked; without an answer there are no GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin" if script else str(tmp_path))
    if script is not None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    assert count_gpus() == count
