"""GPU memory of the dead, with a small program in nvidia-smi's place."""

from pathlib import Path

import pytest

from orchestrator.supervisor.attempt import cleanup

pytestmark = pytest.mark.processes


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of what the program prints; each call takes one line off it."""
    program, lines = tmp_path / "nvidia-smi", tmp_path / "lines"
    program.write_text(f"#!/bin/sh\nhead -1 {lines} | tr ' ' '\\n'\nsed -i 1d {lines}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return lines


def test_waits_until_the_dead_are_gone(nvidia_smi: Path) -> None:
    """Other processes on the GPU do not matter; ours do as long as they are shown."""
    nvidia_smi.write_text("7 11 12\n7 12\n7\n7 12\n")
    assert cleanup.wait_until_gpus_released([11, 12, 13], timeout_seconds=20) == set()
    assert nvidia_smi.read_text() == "7 12\n"


def test_the_wait_is_bounded(nvidia_smi: Path) -> None:
    """Memory that stays taken is reported after the time."""
    nvidia_smi.write_text("11\n" * 100)
    assert cleanup.wait_until_gpus_released([11], timeout_seconds=0.3) == {11}


@pytest.mark.parametrize("answer", ["", "[Not Supported]", "No devices were found"])
def test_an_answer_without_processes_means_none(nvidia_smi: Path, answer: str) -> None:
    """What is no number names no process."""
    nvidia_smi.write_text(f"{answer}\n")
    assert cleanup.wait_until_gpus_released([11], timeout_seconds=20) == set()


def test_nothing_is_waited_for_without_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without nvidia-smi has no GPU to wait for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cleanup.wait_until_gpus_released([11], timeout_seconds=20) == set()
