"""`orchestrator adopt` on real scripts: what it prints and writes, and that nothing is left."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.system.process_tree import has_ended
from tests.e2e.support import (
    DEADLINE_SECONDS,
    Supervised,
    clean_environment,
    events,
    orchestrator,
    wait_for,
)

SAVER = Path(__file__).parent.parent / "first_look" / "saver.py"


def look(directory: Path, way: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Look at the script, in a directory, to the end."""
    command = [sys.executable, str(SAVER), way]
    return orchestrator("adopt", *options, "--", *command, cwd=directory)


def start_look(directory: Path, way: str, *options: str) -> "subprocess.Popen[str]":
    """Start a look in a process of its own, which the test can signal."""
    words = ["-m", "orchestrator", "adopt", *options, "--", sys.executable, str(SAVER), way]
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=directory,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def suggested(report: str) -> list[str]:
    """Return the words of the command that a report suggests."""
    (line,) = [line for line in report.splitlines() if line.startswith("    orchestrator run")]
    return shlex.split(line)


def assert_script_is_gone(directory: Path) -> None:
    pid = int((directory / "pid").read_text())
    wait_for(lambda: has_ended(pid), "the end of the script")


@pytest.mark.parametrize(
    ("way", "pattern", "says"),
    [
        ("one", "out/last.pkl", "each save destroys the one before"),
        ("numbered", "out/model_*.pkl", "each save has a name of its own"),
        ("directories", "out/step_*", "It saves a directory at a time"),
        ("experiments", "out/exp*/last.pkl", "each save destroys the one before"),
        ("pairs", "out/[gd]_*.pkl", "are one checkpoint: whole only together"),
    ],
)
def test_way_in_which_a_script_saves_is_found(
    tmp_path: Path, way: str, pattern: str, says: str
) -> None:
    """Two saves show the pattern, and --help the option; the script is ended."""
    result = look(tmp_path, way)
    assert result.returncode == 0, result.stderr
    words = suggested(result.stdout)
    found = words[words.index("--adopt") + 1]
    assert words.count("--adopt") == (2 if way == "pairs" else 1)
    assert found in (pattern, "out/g_*.pkl", "out/d_*.pkl")
    assert words[words.index("--resume-arg") + 1] == "--resume {path}"
    assert says in result.stdout
    assert_script_is_gone(tmp_path)


def test_suggested_command_resumes_from_what_the_look_has_left(tmp_path: Path) -> None:
    """The settings that were written make a run that goes on from the newest save."""
    result = look(tmp_path, "numbered", "--write")
    assert result.returncode == 0, result.stderr
    assert "The settings are in orchestrator.toml now" in result.stdout
    left = len(list((tmp_path / "out").iterdir()))
    run = Supervised(tmp_path, command=[sys.executable, str(SAVER), "numbered"])
    started = run.wait_for_event("attempt_started")
    run.signal(signal.SIGTERM)
    run.end()
    assert started["resume_step"] == left - 1
    assert events(run.run, "attempt_started")


@pytest.mark.parametrize(
    ("way", "reason"),
    [("no-option", "names no option to resume"), ("unhelpful", "named in its source")],
)
def test_script_that_is_not_told_what_to_resume_from(tmp_path: Path, way: str, reason: str) -> None:
    """Without an option, or where --help fails, the report says why and what follows."""
    result = look(tmp_path, way)
    assert result.returncode == 0, result.stderr
    assert reason in result.stdout
    if way == "no-option":
        assert "--resume-arg" not in suggested(result.stdout)
        assert "each restart begins from zero" in result.stdout


def test_script_that_saves_nothing(tmp_path: Path) -> None:
    """The time ends the look, the status is 1, and nothing is written into the settings."""
    result = look(tmp_path, "nothing", "--for", "1s", "--write")
    assert result.returncode == 1
    assert "It has saved nothing that could be resumed from" in result.stdout
    assert "--for 30m" in result.stdout
    assert not (tmp_path / "orchestrator.toml").exists()
    assert_script_is_gone(tmp_path)


def test_script_that_fails(tmp_path: Path) -> None:
    """Its status is told, and what it saved before is found all the same."""
    result = look(tmp_path, "fails")
    assert result.returncode == 0, result.stderr
    assert "until it ended with status 3" in result.stdout
    assert suggested(result.stdout)[3] == "out/last.pkl"
    assert "if the next has the same name" in result.stdout


def test_script_that_ignores_the_stop_signal_is_killed(tmp_path: Path) -> None:
    """It is killed after the grace period, and the report says what a stop will cost."""
    (tmp_path / "orchestrator.toml").write_text("grace = '1s'  # short\n")
    result = look(tmp_path, "stubborn", "--write")
    assert result.returncode == 0, result.stderr
    assert "did not end within" in result.stdout
    assert_script_is_gone(tmp_path)
    assert "# short" in (tmp_path / "orchestrator.toml").read_text()


def test_script_that_saves_on_the_stop_signal(tmp_path: Path) -> None:
    """The report says that a stop loses nothing."""
    result = look(tmp_path, "on-sigterm")
    assert "and saved in that time" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_the_look_early(tmp_path: Path, number: signal.Signals) -> None:
    """What is known by then is printed, and the script is ended."""
    process = start_look(tmp_path, "slow")
    wait_for((tmp_path / "saved").exists, "a save")
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0
    assert "until a signal ended the look" in stdout
    assert suggested(stdout)[3] == "out/last.pkl"
    assert_script_is_gone(tmp_path)


def test_further_signal_kills_the_script(tmp_path: Path) -> None:
    """A script that ignores the stop signal does not keep a person waiting."""
    process = start_look(tmp_path, "stubborn")
    wait_for((tmp_path / "out/last.pkl").exists, "a save")
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.4)  # one that comes sooner is taken for an echo
    assert "and was killed" in process.communicate(timeout=DEADLINE_SECONDS)[0]
    assert_script_is_gone(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_killed_look_leaves_no_script(tmp_path: Path) -> None:
    """After a SIGKILL to the look itself the script is ended too."""
    process = start_look(tmp_path, "slow")
    wait_for((tmp_path / "saved").exists, "a save")
    process.kill()
    process.communicate(timeout=DEADLINE_SECONDS)
    assert_script_is_gone(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--for", "soon", "--", "true"), "cannot use --for = soon: write a duration"),
        (("--for", "0s", "--", "true"), "it must be longer than 0"),
        (("--", "python", "nowhere.py"), "cannot find the script nowhere.py"),
        (("--", "no-such-program"), "there is no such program"),
    ],
)
def test_bad_command_is_refused(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    """Nothing is started, and the message says what to correct."""
    result = orchestrator("adopt", *words, cwd=tmp_path)
    assert result.returncode == 78
    assert message in result.stderr
    assert os.listdir(tmp_path) == []
