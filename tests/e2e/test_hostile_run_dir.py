"""Commands on a run directory in which another program, or another user, has written."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.support import orchestrator

RUN_FILE = {"format_version": 1, "run_id": "a" * 16, "command": [], "created": "x", "script": None}
SIGNALLED = "import time; print('ready', flush=True); time.sleep(600)"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory that no program has trained in yet."""
    root = tmp_path / "run"
    (root / "checkpoints").mkdir(parents=True)
    (root / "attempts").mkdir()
    (root / "run.json").write_text(json.dumps(RUN_FILE))
    return root


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[str]]:
    """A process of this user that has nothing to do with the run."""
    words = [sys.executable, "-c", SIGNALLED]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def held_by_note(run_dir: Path, note: str | dict[str, Any]) -> int:
    """Lock the run with a note that another wrote; return the descriptor that holds the lock."""
    text = note if isinstance(note, str) else json.dumps(note)
    descriptor = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.pwrite(descriptor, text.encode(), 0)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


@pytest.mark.parametrize("command", ["stop", "checkpoint"])
def test_command_signals_no_process_that_does_not_hold_the_lock(
    run_dir: Path, tmp_path: Path, bystander: subprocess.Popen[str], command: str
) -> None:
    """Whatever pid the lock note names, a bystander gets no signal and the command says why."""
    host = socket.gethostname()
    for pid in (bystander.pid, -1, 2**70, str(bystander.pid)):
        descriptor = held_by_note(run_dir, {"pid": pid, "host": host})
        result = orchestrator(command, str(run_dir), cwd=tmp_path)
        os.close(descriptor)
        assert result.returncode == 78, (pid, result.stderr)
        assert result.stderr.startswith("cannot "), (pid, result.stderr)
        assert result.stderr.count("\n") == 1, (pid, result.stderr)
    assert bystander.poll() is None


NOTES = {
    "nested": "[" * 4000,
    "surrogates": r'{"pid": 7, "host": "\ud800\u0000", "socket": "\udfff\u0000"}',
    "wrong types": '{"pid": [7], "host": {}, "socket": 7}',
    "not UTF-8": "\udcff".encode(errors="surrogateescape").decode("latin-1"),
}


@pytest.mark.parametrize("note", NOTES.values(), ids=NOTES.keys())
def test_lock_note_of_any_content_is_survived(run_dir: Path, tmp_path: Path, note: str) -> None:
    """No content of the lock note ends a command in a traceback."""
    descriptor = held_by_note(run_dir, note)
    for words in (["status"], ["stop"]):
        result = orchestrator(words[0], *words[1:], str(run_dir), cwd=tmp_path)
        assert "Traceback" not in result.stderr, (words, result.stderr)
        assert result.returncode == (0 if words[0] == "status" else 78), (words, result.stderr)
    os.close(descriptor)


def test_second_run_names_the_process_that_holds_the_lock(
    run_dir: Path, tmp_path: Path, bystander: subprocess.Popen[str]
) -> None:
    """A start that finds the lock held names its holder, not the dead process of the note."""
    bystander.kill()
    bystander.wait()
    note = {"pid": bystander.pid, "host": socket.gethostname()}
    descriptor = held_by_note(run_dir, note)
    words = ("run", "--run-dir", str(run_dir), "--", sys.executable, "-c", "pass")
    result = orchestrator(*words, cwd=tmp_path)
    os.close(descriptor)
    assert result.returncode == 69, result.stderr
    assert f"process {os.getpid()} holds its lock" in result.stderr
