"""Bad input and damage: a clear message, the right status, nothing lost, no traceback."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from tests.e2e.support import TRAIN, Supervised, events, open_store, orchestrator

Start = Callable[..., Supervised]
RUN = ("run", "--run-dir", "run")
TRUE = ("--", "true")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((*RUN, "--keep", "1", *TRUE), 78, "with a single checkpoint, damage to it loses the run"),
        ((*RUN, "--keep", "many", *TRUE), 78, "--keep = many"),
        ((*RUN, "--nproc_per_node", "0", *TRUE), 78, "--nproc-per-node = 0: from 1 to 32"),
        (
            (*RUN, "--nproc-per-node", "2", "--adopt", "out/*", *TRUE),
            78,
            "cannot use --adopt with --nproc-per-node yet",
        ),
        ((*RUN, "--every", "often", *TRUE), 78, "10m, 500steps or 1epoch"),
        ((*RUN, "--grace", "0s", *TRUE), 78, "--grace = 0s"),
        ((*RUN, "--grace", "200000d", *TRUE), 78, "at most 3650d"),
        ((*RUN, "--every", "99999999999h", *TRUE), 78, "at most 3650d"),
        ((*RUN, "--keep-best", "loss", *TRUE), 78, "METRIC:min"),
        ((*RUN, "--every", "5", *TRUE), 78, "a count, such as 10m, 500steps or 1epoch\n"),
        ((*RUN, "--no-such-option", *TRUE), 2, "--no-such-option; see `orchestrator run --help`"),
        ((*RUN, "--kep=3", *TRUE), 2, "did you mean --keep?; see `orchestrator run --help`"),
        (("status", "--jsn"), 2, "did you mean --json?; see `orchestrator status --help`"),
        (("checkpoints", "pin", "--setp", "3"), 2, "did you mean --step?"),
        ((*RUN, "--every", "0s", *TRUE), 78, "it must be longer than 0"),
        ((*RUN, "--every", "-5s", *TRUE), 78, "--every = -5s: write a time or a count"),
        (("run", "python", "train.py", "--lr", "3"), 2, "--lr 3; put -- before the command"),
        ((*RUN, "--", "python", "trian.py"), 78, "cannot find the script trian.py in "),
        (("run", "--bogus"), 2, "usage: orchestrator run [OPTIONS] -- COMMAND..."),
        (("checkpoints", "list", "--bogus"), 2, "usage: orchestrator checkpoints list"),
        (("status", "--", "run"), 2, "usage: orchestrator status"),
        ((*RUN,), 2, "COMMAND"),
        ((*RUN, "--", "./file"), 78, "it is not executable; write `python file`"),
        ((*RUN, "--", "/tmp"), 78, "it is a directory"),
        ((*RUN, "--", "no-such-program"), 78, "cannot run no-such-program"),
        (("run", "--run-dir", "file", *TRUE), 78, "name a directory"),
        (("run", "--run-dir", "file/below", *TRUE), 78, "name a directory"),
        (("run", "--run-dir", "/proc/run", *TRUE), 78, "/proc/run"),
        (("status", "nowhere"), 78, "cannot find a run in nowhere"),
        (("status",), 78, "there is none in ./runs; start one with `orchestrator run -- python"),
        (("stop", "nowhere"), 78, "cannot find a run"),
        (("checkpoints", "verify", "nowhere"), 78, "cannot find a run"),
        (("no-such-command",), 2, "no-such-command"),
    ],
)
def test_invalid_command_is_refused_with_its_status(
    tmp_path: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    """An invalid command is refused with the reason and the documented exit status."""
    (tmp_path / "file").touch()
    result = orchestrator(*arguments, cwd=tmp_path)
    assert result.returncode == status, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "file").is_file()


def test_damaged_run_file_is_refused_and_can_be_moved_away(supervise: Start) -> None:
    """A damaged run.json ends with 78; without the file the run continues under its old id."""
    run = supervise("--epochs", "1")
    assert run.end()[0] == 0
    run_id = open_store(run.run).run_id
    run.run.run_file.write_text('{"run_id": ')
    again = supervise("--epochs", "2")
    status, _, stderr = again.end()
    assert status == 78
    assert "run.json" in stderr
    assert "Traceback" not in stderr
    run.run.run_file.unlink()
    assert supervise("--epochs", "2", options=("--continue",)).end()[0] == 0
    assert open_store(run.run).run_id == run_id
    assert events(run.run, "resumed")[-1]["step"] == 16


def test_damaged_journal_line_is_skipped(supervise: Start) -> None:
    """A torn journal line is skipped with a warning, and the run continues."""
    run = supervise("--epochs", "1")
    assert run.end()[0] == 0
    with open(run.run.journal_file, "a") as journal:
        journal.write('{"time": "20')
    again = supervise("--epochs", "2", options=("--continue",))
    status, _, stderr = again.end()
    assert status == 0
    assert "damaged lines in the journal" in stderr


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_damaged_newest_checkpoint_is_quarantined_and_an_older_one_used(supervise: Start) -> None:
    """A flipped bit in the newest checkpoint loses only the steps since the one before."""
    options = ("--every", "5steps", "--snapshot-budget", "off")
    run = supervise("--epochs", "1", "--fail-at", "13", options=options)
    run.end()
    newest, older = open_store(run.run).all()[-1], open_store(run.run).all()[-2]
    damage(newest.state_file)
    again = supervise("--epochs", "1")
    status, _, stderr = again.end()
    assert status == 0
    assert "wrong digest" in stderr
    assert events(run.run, "resumed")[-1]["step"] == older.manifest.step
    assert [path.name for path in run.run.quarantine.iterdir()] == [newest.name]


def test_run_without_a_valid_checkpoint_never_starts_from_zero(supervise: Start) -> None:
    """If every checkpoint is damaged, the run ends with 65, now and at every later start."""
    run = supervise("--epochs", "1")
    run.end()
    run.run.done_file.unlink()
    for checkpoint in open_store(run.run).all():
        damage(checkpoint.state_file)
    for _ in range(2):
        again = supervise("--epochs", "1")
        status, _, stderr = again.end()
        assert status == 65
        assert "none of the checkpoints" in stderr
        assert "see `orchestrator checkpoints list " in stderr
        assert f"; repair one in {run.run.quarantine}, or start over" in stderr
        assert "Traceback" not in stderr
        assert again.status()["state"] == "failed"
    assert len(events(run.run, "attempt_started")) == 1
    run_dir = str(run.run.root)
    verified = orchestrator("checkpoints", "verify", run_dir, cwd=run.run.root)
    assert verified.returncode == 65
    assert "are in quarantine; repair one and move it back" in verified.stderr
    listed = orchestrator("checkpoints", "list", run_dir, cwd=run.run.root)
    assert "state.pt has changed: wrong digest" in listed.stdout


@pytest.mark.parametrize(
    ("name", "as_file"),
    [("journal.jsonl", False), ("lock", False), ("checkpoints", True), ("attempts", True)],
)
def test_file_of_the_wrong_kind_in_the_run_directory_is_refused(
    tmp_path: Path, name: str, as_file: bool
) -> None:
    """A file in place of a directory, or the reverse, is refused by name."""
    assert orchestrator(*RUN, *TRUE, cwd=tmp_path).returncode == 0
    path = tmp_path / "run" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.touch() if as_file else path.mkdir()
    for command in ((*RUN, *TRUE), ("status", "run", "--json"), ("checkpoints", "list", "run")):
        result = orchestrator(*command, cwd=tmp_path)
        assert "Traceback" not in result.stderr
        assert result.returncode in (0, 78)
        assert result.returncode == 0 or str(Path("run")) in result.stderr
    assert orchestrator(*RUN, *TRUE, cwd=tmp_path).returncode == 78


def test_value_that_cannot_be_stored_is_named_at_the_first_save(supervise: Start) -> None:
    """A function in session.state ends the run with 78 at the first save, and is named."""
    code = "session.state['callback'] = print"
    run = supervise("--run-at", "0", "--code", code)
    status, stdout, _ = run.end()
    assert status == 78
    assert "session.state['callback']" in stdout
    assert "Traceback" not in stdout
    assert len(events(run.run, "attempt_started")) == 1


def test_deep_directories_do_not_lengthen_the_socket_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run directory and a TMPDIR that are too long for a socket's path do not prevent a run."""
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(deep))
    command = [sys.executable, str(TRAIN), "--epochs", "1"]
    result = orchestrator("run", "--run-dir", str(deep / "run"), "--", *command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    status = orchestrator("status", str(deep / "run"), "--json", cwd=tmp_path)
    assert json.loads(status.stdout)["state"] == "completed"


def test_several_processes_are_refused(supervise: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A world size above 1 ends with 78 and says so."""
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    status, stdout, _ = supervise("--epochs", "1").end()
    assert status == 78
    assert "WORLD_SIZE is 2" in stdout


LAUNCHER = """
import subprocess, sys
children = [subprocess.Popen([sys.executable, *sys.argv[1:]]) for _ in range(2)]
sys.exit(any([child.wait() for child in children]))
"""


def launched(*arguments: str) -> list[str]:
    """A command that starts two trainers, like torchrun, and hides their exit statuses."""
    return [sys.executable, "-c", LAUNCHER, str(TRAIN), *arguments]


def test_launcher_does_not_hide_that_several_processes_are_refused(
    supervise: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends with the session's 78 and its reason, whatever the launcher ends with."""
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    status, _, stderr = supervise(command=launched("--epochs", "1")).end()
    assert status == 78
    assert "the script was refused: WORLD_SIZE is 2, and this run was started for" in stderr


def test_launcher_does_not_hide_that_adopt_refuses_a_session(supervise: Start) -> None:
    """A session under --adopt is refused with 78 behind a launcher too."""
    run = supervise(command=launched("--epochs", "1"), options=("--adopt", "out/*"))
    status, _, stderr = run.end()
    assert status == 78
    assert "the script was refused: this run has --adopt" in stderr


def test_unloadable_checkpoint_is_replaced_by_an_older_one(supervise: Start) -> None:
    """After torch has refused a file with a valid digest twice, an older one is used."""
    options = ("--every", "5steps", "--snapshot-budget", "off")
    run = supervise("--epochs", "1", "--fail-at", "13", options=options)
    run.end()
    newest, older = open_store(run.run).all()[-1], open_store(run.run).all()[-2]
    junk = b"not what torch.save writes"
    newest.state_file.write_bytes(junk)
    manifest = json.loads((newest.path / "manifest.json").read_text())
    digest = xxhash.xxh3_128(junk).hexdigest()
    manifest["files"]["state.pt"] = {"bytes": len(junk), "xxh3_128": digest}
    (newest.path / "manifest.json").write_text(json.dumps(manifest))
    again = supervise("--epochs", "1")
    status, stdout, stderr = again.end()
    assert status == 0, (stdout, stderr)
    assert events(run.run, "resumed")[-1]["step"] == older.manifest.step
    assert [path.name for path in run.run.quarantine.iterdir()] == [newest.name]
