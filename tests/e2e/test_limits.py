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
