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

from tests.e2e.support import DEADLINE_SECONDS, orchestrator

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
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
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
    for pid in (bystander.pid, -bystander.pid, 2**70, str(bystander.pid)):
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


ESCAPE = "\x1b]0;title\x07\x1b[2J\u202e\x9b"


def write_hostile_files(run_dir: Path) -> None:
    """Fill every file that a command shows with escape sequences and texts that nothing encodes."""
    text = f"{ESCAPE}\ud800\0"
    event = {"time": text, "event": "checkpoint_failed", "attempt": 1, "problem": text}
    (run_dir / "journal.jsonl").write_text(json.dumps(event) + "\n" + "[" * 100_000 + "\n")
    (run_dir / "supervisor.log").write_text(
        json.dumps({"event": text, "level": "info", "timestamp": "2026-01-01T00:00:00Z", text: 1})
        + f"\n{ESCAPE}\n"
    )
    manifest = {
        "format_version": 1,
        "run_id": RUN_FILE["run_id"],
        "step": 7,
        "epoch": 1,
        "reason": "periodic",
        "metrics": {text: 1.5},
        "healthy": True,
        "time": text,
        "files": {"state.pt": {"bytes": 1, "xxh3_128": text}},
        "versions": {text: text},
        "digests": {},
        "doubts": [text],
    }
    checkpoint = run_dir / "checkpoints" / "step-000000000007"
    for directory in (checkpoint, run_dir / "checkpoints" / "quarantine" / "step-000000000006"):
        directory.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    (checkpoint / "state.pt").write_text("x")
    note = run_dir / "checkpoints" / "quarantine" / "step-000000000006" / "quarantine.json"
    note.write_text(json.dumps({"reason": text}))


@pytest.mark.parametrize(
    "words",
    [["status"], ["checkpoints", "list"], ["checkpoints", "verify"], ["attach"], ["doctor"]],
)
def test_no_escape_sequence_reaches_the_terminal(
    run_dir: Path, tmp_path: Path, words: list[str]
) -> None:
    """What others wrote is shown without what a terminal obeys, and ends no command."""
    write_hostile_files(run_dir)
    result = orchestrator(*words, str(run_dir), cwd=tmp_path)
    said = result.stdout + result.stderr
    assert "Traceback" not in said
    assert not set(said) & set("\x1b\x07\x9b\u202e\0"), said


@pytest.mark.parametrize(
    "name", ["lock", "journal.jsonl", "run.json", "metrics.jsonl", "supervisor.log", "done.json"]
)
def test_fifo_in_place_of_a_file_blocks_no_command(
    run_dir: Path, tmp_path: Path, name: str
) -> None:
    """A FIFO in the place of a file of the run ends a command with a message, or is passed over."""
    (run_dir / name).unlink(missing_ok=True)
    os.mkfifo(run_dir / name)
    for words in (
        ["status", str(run_dir)],
        ["run", "--run-dir", str(run_dir), "--", sys.executable, "-c", "pass"],
    ):
        result = orchestrator(*words, cwd=tmp_path)
        assert "Traceback" not in result.stderr, (words, result.stderr)
        assert result.returncode in (0, 78), (words, result.stderr)


def test_links_in_a_run_directory_lead_no_write_elsewhere(run_dir: Path, tmp_path: Path) -> None:
    """Links in the place of every file of a run leave the files that they lead to as they were."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    names = ("journal.jsonl", "supervisor.log", "metrics.jsonl", "reserve", "tracking.json")
    for name in names:
        (run_dir / name).symlink_to(precious)
    words = ("run", "--run-dir", str(run_dir), "--", sys.executable, "-c", "print(1)")
    result = orchestrator(*words, cwd=tmp_path)
    assert "Traceback" not in result.stderr, result.stderr
    assert precious.read_text() == "precious"
    (run_dir / "lock").unlink()
    (run_dir / "lock").symlink_to(precious)
    refused = orchestrator(*words, cwd=tmp_path)
    assert refused.returncode == 78, refused.stderr
    assert "lock: it is a symbolic link" in refused.stderr
    assert precious.read_text() == "precious"


def test_folder_named_like_the_package_is_not_run(tmp_path: Path, run_dir: Path) -> None:
    """A folder `orchestrator` in the working directory does not take the program's place."""
    (tmp_path / "orchestrator").mkdir()
    (tmp_path / "orchestrator" / "__init__.py").write_text("open('imported', 'w')")
    (tmp_path / "orchestrator" / "__main__.py").write_text("open('started', 'w')")
    command = ("--", sys.executable, "-P", "-c", "pass")
    script = Path(sys.executable).with_name("orchestrator")
    for words in (["run", "--detach", "--run-dir", str(run_dir), *command],):
        subprocess.run([script, *words], cwd=tmp_path, check=True, timeout=DEADLINE_SECONDS)
    for words in (["slurm-script", *command], ["systemd-unit", *command]):
        result = subprocess.run(
            [script, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        assert " -P -m orchestrator " in result.stdout
    assert not (tmp_path / "imported").exists()
    assert not (tmp_path / "started").exists()


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
