"""Preemption notices stop a run as a signal does."""

from collections.abc import Callable
from pathlib import Path

from tests.e2e.support import Supervised, assert_nothing_left, events, wait_for

Start = Callable[..., Supervised]
SLEEPER = ["bash", "-c", "sleep 1000 & wait"]


def test_notice_file_stops_the_run(supervise: Start, tmp_path: Path) -> None:
    """The run saves and stops when the file appears, and the log names the file."""
    file = tmp_path / "notice"
    run = supervise(command=SLEEPER, options=("--notice-file", str(file)))
    run.trainer_pid()
    file.touch()
    status, _, stderr = run.end()
    assert status == 75
    assert f"stopping on the notice file {file}" in stderr
    assert_nothing_left(run.run)


def test_notice_command_stops_the_run(supervise: Start, tmp_path: Path) -> None:
    """The run saves and stops when the command ends with status 0."""
    command = "echo >> asked; [ -e notice ]"
    run = supervise(command=SLEEPER, options=("--notice-command", command))
    run.trainer_pid()
    wait_for(lambda: (tmp_path / "asked").exists(), "the first question")
    assert events(run.run, "stop_requested") == []
    (tmp_path / "notice").touch()
    assert run.end()[0] == 75
    assert events(run.run, "stop_requested")[0]["source"] == "the notice command"


def test_notice_command_that_cannot_be_run_is_reported_once(supervise: Start) -> None:
    """The problem is logged once, and the run continues."""
    run = supervise(
        command=["bash", "-c", "sleep 7"], options=("--notice-command", "no-such-program")
    )
    status, _, stderr = run.end()
    assert status == 0
    assert stderr.count("the notice command cannot be run") == 1
