"""Limits of a run whatever its progress, and commands that never started."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.support import Supervised, events, orchestrator, wait_for

Start = Callable[..., Supervised]

KILLED = "import os, time; time.sleep(0.1); os.kill(os.getpid(), 9)"


def test_run_gives_up_after_its_attempts(supervise: Start) -> None:
    """--max-attempts ends a run that --max-restarts would let go on; a later start counts anew."""
    options = ("--max-attempts", "2", "--max-restarts", "9")
    for attempts in (2, 4):
        run = supervise(command=[sys.executable, "-c", KILLED], options=options)
        assert run.end()[0] == 70
        assert len(events(run.run, "attempt_started")) == attempts
    assert "--max-attempts" in events(run.run, "gave_up")[-1]["reason"]


def test_run_gives_up_when_its_time_is_over(supervise: Start) -> None:
    """--give-up-after saves, stops and ends the run with 70, so that no scheduler runs it again."""
    run = supervise("--epochs", "1000", "--step-seconds", "0.05", options=("--give-up-after", "4s"))
    status, _, stderr = run.end()
    assert status == 70, stderr
    assert events(run.run, "stop_requested")[0]["source"] == "--give-up-after"
    assert events(run.run, "gave_up")
    assert "gave up: the time of --give-up-after is over" in stderr
    assert "now: run the same command again to continue; its limits then count from 0" in stderr
    assert "fix this" not in stderr
    assert "the same signal" not in stderr
    assert wait_for(lambda: events(run.run, "checkpoint_published"), "the save")


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "tarin.py", "--lr", "1"],
        [sys.executable, "-u", "-W", "ignore", "tarin.py"],
        ["bash", "tarin.sh"],
    ],
    ids=["script", "options", "shell"],
)
def test_mistyped_script_leaves_nothing(tmp_path: Path, command: list[str]) -> None:
    """A script that is not there is refused before the run's directory is made."""
    result = orchestrator("run", "--", *command, cwd=tmp_path)
    assert result.returncode == 78
    assert "cannot find the script tarin." in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ([sys.executable, "-m", "tarin"], "No module named tarin"),
        ([sys.executable, "-m", "pkg.tarin"], "No module named 'pkg'"),
        (["timeout", "5", sys.executable, "tarin.py"], "can't open file"),
        (["env", "X=1", sys.executable, "-m", "tarin"], "No module named tarin"),
        ([sys.executable, "empty"], "can't find '__main__' module"),
        (["timeout", "5", "pyhton", "train.py"], "pyhton"),
        (["timeout", "5", "./train.py"], "./train.py"),
        (["./other.py"], "the interpreter that its first line names does not exist"),
    ],
    ids=["-m", "package", "timeout", "env", "directory", "program", "forbidden", "interpreter"],
)
def test_command_that_never_started_leaves_nothing(
    tmp_path: Path, command: list[str], said: str
) -> None:
    """What the system, a wrapper or Python did not find ends with 78, and leaves no run behind."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "train.py").touch()
    (tmp_path / "other.py").write_text("#!/no/such/python\n")
    (tmp_path / "other.py").chmod(0o755)
    ways = ((), ("--detach",), ("--nproc-per-node", "2")) if "tarin" in command[:3] else ((),)
    for options in ways:
        result = orchestrator("run", *options, "--", *command, cwd=tmp_path)
        assert result.returncode == 78, result.stderr
        assert said in result.stderr
        assert {path.name for path in tmp_path.iterdir()} == {"empty", "train.py", "other.py"}


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ([sys.executable, "imports.py"], 70),
        (["timeout", "5", "bash", "job.sh"], 70),
        ([sys.executable, "-c", "print('done')"], 0),
    ],
    ids=["import", "shell script", "no session"],
)
def test_command_that_ran_keeps_its_records(
    tmp_path: Path, command: list[str], status: int
) -> None:
    """A failed import, and a missing program in the middle of a script, keep their output."""
    (tmp_path / "imports.py").write_text("import no_such_module")
    (tmp_path / "job.sh").write_text("echo prepared\npyhton train.py")
    result = orchestrator("run", "--run-dir", "r", "--", *command, cwd=tmp_path)
    assert result.returncode == status
    assert (tmp_path / "r" / "attempts" / "0001" / "output.log").stat().st_size


def contents_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_mistyped_command_changes_nothing_in_a_run(supervise: Start) -> None:
    """A run that has checkpoints keeps everything when its command is mistyped once."""
    first = supervise("--epochs", "1")
    assert first.end()[0] == 0
    (first.run.root / "done.json").unlink()
    kept = contents_of(first.run.checkpoints) | contents_of(first.run.attempt(1).root)
    second = supervise(
        command=["timeout", "5", sys.executable, "tarin.py"], options=("--continue",)
    )
    assert second.end()[0] == 78
    assert kept == contents_of(first.run.checkpoints) | contents_of(first.run.attempt(1).root)
    assert kept
