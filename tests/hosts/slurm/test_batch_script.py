"""Batch scripts: their content, checked with shellcheck."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.support import orchestrator

EXAMPLES = sorted((Path(__file__).parents[3] / "examples" / "slurm").glob("*.sh"))


def generate(directory: Path, *arguments: str) -> str:
    result = orchestrator("slurm-script", *arguments, cwd=directory)
    assert result.returncode == 0, result.stderr
    return result.stdout


def check(script: str) -> None:
    """Fail on any finding of shellcheck."""
    if shutil.which("shellcheck") is None:
        if os.environ.get("REQUIRE_HOSTS"):
            pytest.fail("shellcheck is not installed")
        pytest.skip("needs shellcheck")
    result = subprocess.run(
        ["shellcheck", "-"], input=script, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_script_replaces_its_shell_and_allows_a_requeue(tmp_path: Path) -> None:
    """Output is appended, the job may be requeued, and the supervisor replaces the shell."""
    script = generate(tmp_path, "--", "python", "-m", "my.train", "--lr", "0.1")
    assert script == (
        "#!/bin/bash\n"
        "#SBATCH --job-name=train\n"
        "#SBATCH --open-mode=append\n"
        "#SBATCH --requeue\n"
        "#SBATCH --signal=B:USR1@40\n"
        "\n"
        "# exec replaces this shell, so that the supervisor gets every signal that SLURM sends.\n"
        f"exec {sys.executable} -P -m orchestrator run \\\n"
        "    --run-dir runs/train --slurm-requeue \\\n"
        "    -- python -m my.train --lr 0.1\n"
    )
    check(script)


def test_script_has_the_options_of_run_and_of_sbatch(tmp_path: Path) -> None:
    """Options of run are in the command, and those of sbatch at the top of the script."""
    script = generate(
        tmp_path,
        *("--grace", "2m", "--every", "500steps", "--no-spare", "--run-dir", "/data/my run"),
        *("--sbatch", "time=4:00:00", "--sbatch=--gpus=1", "--", "python", "it's.py"),
    )
    lines = script.splitlines()
    assert lines[4:7] == [
        "#SBATCH --signal=B:USR1@130",
        "#SBATCH --time=4:00:00",
        "#SBATCH --gpus=1",
    ]
    assert lines[1] == "#SBATCH --job-name=my-run"
    options = "--slurm-requeue --every 500steps --grace 2m --no-spare"
    assert f"--run-dir '/data/my run' {options} " in script
    check(script)


@pytest.mark.parametrize("option", ["array=0-3", "-a 0-3"])
def test_each_task_of_an_array_has_its_own_run(tmp_path: Path, option: str) -> None:
    """The run directory ends with the number of the task."""
    script = generate(tmp_path, f"--sbatch={option}", "--", "python", "-m", "train")
    assert '--run-dir runs/train-"$SLURM_ARRAY_TASK_ID" ' in script
    check(script)


def test_requeue_can_be_turned_off(tmp_path: Path) -> None:
    """--no-slurm-requeue replaces --slurm-requeue in the script."""
    script = generate(tmp_path, "--no-slurm-requeue", "--", "python", "-m", "train")
    assert " --no-slurm-requeue " in script
    assert " --slurm-requeue " not in script


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("--sbatch", "time=1\nrm -rf", "--", "true"), 78, "cannot use --sbatch"),
        (("--sbatch", "", "--", "true"), 78, "cannot use --sbatch"),
        (("--grace", "long", "--", "true"), 78, "cannot use --grace = long"),
        ((), 2, "name the COMMAND to run"),
    ],
)
def test_invalid_arguments_are_refused(
    tmp_path: Path, arguments: tuple[str, ...], status: int, text: str
) -> None:
    """Arguments that make no valid script are refused with the reason."""
    result = orchestrator("slurm-script", *arguments, cwd=tmp_path)
    assert result.returncode == status
    assert text in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_shellcheck_accepts_the_examples(example: Path) -> None:
    """Shellcheck has no finding in the examples; tests/e2e/hosts runs them."""
    check(example.read_text())
