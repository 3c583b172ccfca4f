"""Splitting of Python commands."""

import zipfile
from pathlib import Path

import pytest

from orchestrator.system.python_command import PythonCommand, python_command


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train.py", "script", "old.pyc"):
        Path(name).touch()
    Path("folder").mkdir()
    with zipfile.ZipFile("app.pyz", "w") as archive:
        archive.writestr("__main__.py", "")


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("python", "train.py"),
        ("/usr/bin/python3.11", "train.py --epochs 3 -m x"),
        ("python3", "script"),
        ("python -u -X dev -Ximporttime -W error -Wignore -OO -B -Es", "train.py -c"),
        ("python --check-hash-based-pycs never -I", "train.py"),
        ("python", "-m package.train --epochs 3"),
        ("python -u", "-mpackage"),
    ],
)
def test_script_or_module_is_separated_from_the_interpreter(python: str, words: str) -> None:
    """The interpreter and its options are separated from the script or module."""
    expected = PythonCommand(python.split(), words.split())
    assert python_command([*python.split(), *words.split()]) == expected


@pytest.mark.parametrize(
    "command",
    [
        "bash train.sh",
        "torchrun train.py",
        "python",
        "python -u",
        "python -m",
        "python -c pass",
        "python -",
        "python -i train.py",
        "python -x train.py",
        "python -um package",
        "python gone.py",
        "python folder",
        "python app.pyz",
        "python old.pyc",
        "python -W",
        "pythonic train.py",
        "env python train.py",
    ],
)
def test_other_command_is_not_split(command: str) -> None:
    """A command that a spare cannot run exactly as the interpreter would gives None."""
    assert python_command(command.split()) is None
