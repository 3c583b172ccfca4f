"""The question for --help, which some scripts answer late, without end, or not at all."""

import ctypes
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import ConfigError
from orchestrator.first_look.help_text import (
    MOST_HELP_BYTES,
    answers_help,
    ask_for_help,
    source_of,
)
from orchestrator.system.process_tree import PR_SET_CHILD_SUBREAPER

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def no_subreaper() -> Iterator[None]:
    """Leave the orphans of later tests to the process that reaps them."""
    yield
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def never() -> bool:
    return False


def script(directory: Path, source: str) -> list[str]:
    """Return the command of a script that writes down its process id first."""
    path = directory / "script.py"
    pid_file = directory / "pid"
    path.write_text(f"import os, sys, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))\n")
    with open(path, "a") as file:
        file.write(source)
    return [sys.executable, str(path), "a b"]


def is_gone(directory: Path) -> bool:
    return not psutil.pid_exists(int((directory / "pid").read_text()))


def test_help_is_what_the_script_prints(tmp_path: Path) -> None:
    """Its own words come before --help, both streams count, and the lines are wide."""
    source = "print(sys.argv[1:], flush=True); print(os.environ['COLUMNS'], file=sys.stderr)"
    answer = ask_for_help(script(tmp_path, source), never)
    assert (answer.text, answer.problem) == ("['a b', '--help']\n250\n", "")


@pytest.mark.parametrize(
    "source",
    [
        "print('--resume', flush=True); time.sleep(600)",
        "import signal; signal.signal(15, signal.SIG_IGN); print('--resume', flush=True)\n"
        "time.sleep(600)",
        "print('--resume', flush=True); os.close(1); os.close(2); time.sleep(600)",
        "print('--resume', flush=True)\nif os.fork(): os.waitpid(-1, 0)\ntime.sleep(600)",
    ],
    ids=["sleeps", "ignores SIGTERM", "closes its output", "forks"],
)
def test_help_that_does_not_end(tmp_path: Path, source: str) -> None:
    """What was printed by the deadline counts, and the script is killed."""
    answer = ask_for_help(script(tmp_path, source), never, seconds=1.0)
    assert answer.text == "--resume\n"
    assert "did not end within" in answer.problem
    assert is_gone(tmp_path)


def test_process_that_help_leaves_behind_is_ended(tmp_path: Path) -> None:
    """It holds the pipe open, which keeps nothing waiting."""
    source = (
        "if os.fork() == 0:\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "time.sleep(0.5); print('done')"
    )
    answer = ask_for_help(script(tmp_path, source), never, seconds=60.0)
    assert (answer.text, answer.problem) == ("done\n", "")
    assert is_gone(tmp_path)


def test_endless_help_has_a_limit(tmp_path: Path) -> None:
    """No more is read than an answer has, and the script is ended."""
    began = time.monotonic()
    answer = ask_for_help(script(tmp_path, "while True: print('-' * 1000)"), never, seconds=300.0)
    assert len(answer.text) == MOST_HELP_BYTES
    assert time.monotonic() - began < 300.0
    assert is_gone(tmp_path)


def test_help_that_fails_is_told(tmp_path: Path) -> None:
    """What it has printed counts all the same."""
    answer = ask_for_help(script(tmp_path, "print('--resume X'); sys.exit(2)"), never)
    assert answer.text == "--resume X\n"
    assert answer.problem == "its --help failed with status 2"


def test_stop_request_ends_the_question(tmp_path: Path) -> None:
    """A person who presses Ctrl-C does not wait for a slow import."""
    command = script(tmp_path, "time.sleep(600)")
    ask_for_help(command, (tmp_path / "pid").exists, seconds=300.0)
    assert is_gone(tmp_path)


def test_program_that_cannot_be_run_is_refused() -> None:
    """The message names it."""
    with pytest.raises(ConfigError, match="cannot run no-such-program"):
        ask_for_help(["no-such-program"], never)


@pytest.mark.parametrize(
    ("source", "answers"),
    [
        ("import argparse", True),
        ("import click", True),
        ("from transformers import HfArgumentParser", True),
        ("LightningCLI(Model)", True),
        ("n = 1 if '--resume' in sys.argv else 0", False),
        ("import torch", False),
        (None, True),
    ],
)
def test_only_a_script_that_answers_is_asked(source: str | None, answers: bool) -> None:
    """A script without a parser would take --help for a start."""
    assert answers_help(source) == answers


def test_source_is_read_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script and a module of the project have one, an installed program has none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").write_text("# mine")
    assert source_of([sys.executable, "a.py", "--x"]) == "# mine"
    assert source_of([sys.executable, "-m", "a"]) == "# mine"
    assert source_of(["ls"]) is None
    assert source_of([sys.executable, "-c", "1"]) is None
    (tmp_path / "a.py").write_bytes(b"\xff\xfe")
    assert source_of([sys.executable, "a.py"]) is None
