"""Which outputs say that nothing of a command's script ran."""

import shlex
import sys
from pathlib import Path

import pytest

from orchestrator.supervisor.recovery.never_started import never_started

NO_FILE = "[Errno 2] No such file or directory"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, which has a script."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    (tmp_path / "job.sh").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("timeout 5 python tarin.py", 2, f"python: can't open file '{{here}}/tarin.py': {NO_FILE}"),
        (
            "python3 train.py",
            2,
            "python3: can't open file '{here}/train.py': [Errno 13] Permission",
        ),
        ("python d", 1, "/bin/python: can't find '__main__' module in '{here}/d'"),
        ("env X=1 python -m tarin", 1, "/bin/python: No module named tarin"),
        ("python -mtarin --lr 1", 1, "/bin/python: No module named tarin"),
        (
            "python -m pkg",
            1,
            "python: No module named pkg.__main__; 'pkg' is a package and cannot be directly "
            "executed",
        ),
        (
            "python -m pkg.tarin",
            1,
            "python: Error while finding module specification for 'pkg.tarin' "
            "(ModuleNotFoundError: No module named 'pkg')",
        ),
        ("bash -e tarin.sh", 127, "bash: tarin.sh: No such file or directory"),
        ("sh -e tarin.sh", 2, "sh: 0: cannot open tarin.sh: No such file"),
        ("nice -n 5 pyhton train.py", 127, "nice: 'pyhton': Datei oder Verzeichnis nicht gefunden"),
        ("/usr/bin/env ./train.py", 127, "/usr/bin/env: './train.py': No such file or directory"),
        ("timeout 5 ./train.py", 126, "timeout: failed to run command './train.py': no permission"),
        ("timeout --foo 5 python train.py", 125, "timeout: unrecognized option '--foo'"),
        ("sh -c 'pyhton train.py'", 127, "sh: 1: pyhton: not found"),
        (
            "bash -lc 'python tarin.py'",
            2,
            f"python: can't open file '{{here}}/tarin.py': {NO_FILE}",
        ),
        ("launch tarin.py", 1, f"python: can't open file '{{here}}/tarin.py': {NO_FILE}"),
    ],
)
def test_what_was_not_found_never_started(here: Path, command: str, status: int, said: str) -> None:
    """A program, script or module of the command that is not found has not started."""
    line = said.format(here=here)
    output = ["a launcher's notice", line, "its traceback"]
    assert never_started(shlex.split(command), status, output) == line


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("python train.py", 1, "ModuleNotFoundError: No module named 'tarin'"),
        ("python train.py", 2, f"python: can't open file '{{here}}/child.py': {NO_FILE}"),
        ("python train.py child.py", 2, f"python: can't open file '{{here}}/child.py': {NO_FILE}"),
        ("python -m tarin", 1, "python: No module named other"),
        ("python tarin.py", 2, "python: can't open file '{here}/tarin.py': [Errno 5] I/O error"),
        ("python tarin.py", 0, f"python: can't open file '{{here}}/tarin.py': {NO_FILE}"),
        ("python tarin.py", -9, f"python: can't open file '{{here}}/tarin.py': {NO_FILE}"),
        ("bash job.sh", 127, "job.sh: line 3: pyhton: command not found"),
        ("timeout 5 bash job.sh", 127, "job.sh: line 3: pyhton: command not found"),
        ("bash -c 'prepare; pyhton train.py'", 127, "bash: line 1: pyhton: command not found"),
        ("bash -c 'python tarin.py", 127, "bash: -c: line 1: unexpected EOF"),
        ("timeout 5 python train.py", 1, "timeout: the script says so"),
    ],
)
def test_what_a_script_says_is_no_such_message(
    here: Path, command: str, status: int, said: str
) -> None:
    """A script that has run, or another error of the system, is told apart."""
    words = shlex.split(command) if command.count("'") != 1 else command.split(" ", 2)
    assert never_started(words, status, [said.format(here=here)]) is None


def test_text_of_a_foreign_output_is_harmless(here: Path) -> None:
    """Whatever the output holds is compared and not used."""
    lines = ["\0", "x: can't open file '\0': [Errno 2] No", ": ", "sh: \ud800: No such file"]
    assert never_started([sys.executable, "-u", "tarin.py"], 2, lines) is None
