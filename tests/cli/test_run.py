"""The name of a command's run."""

from pathlib import Path

import pytest

from orchestrator.cli.run import script_of


@pytest.mark.parametrize(
    ("command", "script"),
    [
        ("python train.py data.csv", "train.py"),
        ("python -W ignore train.py", "train.py"),
        ("bash exp1.sh", "exp1.sh"),
        ("bash exp2.sh -m train.py", "exp2.sh"),
        ("torchrun --nproc-per-node 1 train.py", "train.py"),
        ("uv run train.py", "train.py"),
        ("env A=b bin/python3.11 train.py", "train.py"),
        ("python -m package.train", "train"),
        ("python -m package.train data.csv", "train"),
        ("python -m torch.distributed.run train.py", "train.py"),
        ("python -m", None),
        ("python -c pass", None),
        ("sleep 5", None),
        ("train.py", None),
    ],
)
def test_script_of_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, script: str | None
) -> None:
    """The first word that is a file, not counting the program, names the run; else the module."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("train.py", "exp1.sh", "exp2.sh", "data.csv", "bin/python3.11"):
        (tmp_path / name).touch()
    assert script_of(command.split()) == script
