"""The examples do what their pages say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from orchestrator.rundir.paths import RunDir
from tests.e2e.support import clean_environment, open_store, orchestrator

ORCHESTRATOR = (sys.executable, "-m", "orchestrator", "run", "--")
RANKS = ("--nproc-per-node", "2")
EXAMPLES = Path(__file__).parent.parent.parent / "examples"

# Many times what the slowest takes alone, for machines that do other things too.
HANG_SECONDS = 1500.0


def run_example(
    cwd: Path, name: str, *arguments: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "orchestrator", "run", *options, "--"),
            sys.executable,
            EXAMPLES / name,
            *list(arguments),
        ],
        cwd=cwd,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )


def newest_state(cwd: Path) -> Path:
    return open_store(RunDir(cwd / "runs" / "linear")).all()[-1].state_file


def test_linear_resumes_like_the_classic_program(tmp_path: Path) -> None:
    """Interrupted after three epochs, the program trains the last two and keeps its keys."""
    first = run_example(tmp_path, "linear.py", "--interrupt-after", "3")
    assert first.returncode == 75, first.stdout + first.stderr
    keys = {"epoch", "model_state_dict", "optimizer_state_dict", "loss"}
    interrupted = torch.load(newest_state(tmp_path))
    assert keys <= interrupted.keys()
    # Classic code continues with range(checkpoint["epoch"], 5): two more.
    assert interrupted["epoch"] == 3
    second = run_example(tmp_path, "linear.py")
    assert second.returncode == 0, second.stdout + second.stderr
    epochs = re.findall(r"epoch\s+(\d)", first.stdout), re.findall(r"epoch\s+(\d)", second.stdout)
    assert [len(found) for found in epochs] == [3, 2]
    assert torch.load(newest_state(tmp_path))["epoch"] == 5


@pytest.mark.timeout(HANG_SECONDS + 60)
def test_digits_reach_their_accuracy(tmp_path: Path) -> None:
    """The digits example reaches 98% on the test set before its last epoch."""
    result = run_example(tmp_path, "digits.py", "--epochs", "6")
    assert result.returncode == 0, result.stdout + result.stderr
    accuracy = re.search(r"final test accuracy (\d\.\d+)", result.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) >= 0.98


def test_char_gpt_without_steps_writes_a_sample(tmp_path: Path) -> None:
    """With 0 steps the untrained model writes its sample."""
    result = run_example(tmp_path, "char_gpt.py", "--steps", "0", "--megabytes", "0.2")
    assert result.returncode == 0, result.stdout + result.stderr


def test_char_gpt_trains(tmp_path: Path) -> None:
    """The character GPT trains on Python's own sources and writes a sample."""
    result = run_example(tmp_path, "char_gpt.py", "--steps", "5", "--megabytes", "0.2")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "parameters" in result.stdout


def test_fsdp_char_gpt_trains_with_two_ranks(tmp_path: Path) -> None:
    """Two processes hold half of the model each, and one process without a group exports it."""
    words = ("--steps", "3", "--megabytes", "0.2", "--batch-size", "2", "--context", "16")
    result = run_example(tmp_path, "fsdp_char_gpt.py", *words, options=RANKS)
    assert result.returncode == 0, result.stdout + result.stderr
    exported = orchestrator("checkpoints", "export", "-o", "model.safetensors", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "model.safetensors").stat().st_size > 400_000


@pytest.mark.timeout(HANG_SECONDS + 60)
def test_ddp_digits_train_with_two_ranks(tmp_path: Path) -> None:
    """Two processes train the digits together, and rank 0 evaluates and prints."""
    result = run_example(tmp_path, "ddp_digits.py", "--epochs", "2", options=RANKS)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.findall(r"epoch +(\d)  test accuracy 0\.\d+", result.stdout) == ["1", "2"]
