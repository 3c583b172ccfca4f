"""GPU memory of ended processes, with a small program in the place of nvidia-smi."""

from pathlib import Path

import pytest

from orchestrator.supervisor.attempt import cleanup

pytestmark = pytest.mark.processes


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file with the program's answers; each call takes one line off it."""
    program, lines = tmp_path / "nvidia-smi", tmp_path / "lines"
    program.write_text(f"#!/bin/sh\nhead -1 {lines} | tr ' ' '\\n'\nsed -i 1d {lines}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return lines


def test_next_attempt_waits_until_the_former_holds_no_gpu_memory(nvidia_smi: Path) -> None:
    """Other processes on the GPU do not matter; the attempt's do until they are gone."""
    nvidia_smi.write_text("7 11 12\n7 12\n7\n7 12\n")
    assert cleanup.wait_until_gpus_released([11, 12, 13], timeout_seconds=20) == set()
    assert nvidia_smi.read_text() == "7 12\n"


def test_wait_for_gpu_memory_has_a_timeout(nvidia_smi: Path) -> None:
    """Processes that still hold memory at the timeout are returned."""
    nvidia_smi.write_text("11\n" * 100)
    assert cleanup.wait_until_gpus_released([11], timeout_seconds=0.3) == {11}


@pytest.mark.parametrize("answer", ["", "[Not Supported]", "No devices were found"])
def test_gpu_without_processes_is_not_waited_for(nvidia_smi: Path, answer: str) -> None:
    """Text that is not a number names no process."""
    nvidia_smi.write_text(f"{answer}\n")
    assert cleanup.wait_until_gpus_released([11], timeout_seconds=20) == set()


def test_machine_without_nvidia_smi_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without nvidia-smi has no GPU to wait for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cleanup.wait_until_gpus_released([11], timeout_seconds=20) == set()
