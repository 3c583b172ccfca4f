"""Processes and GPU memory of an attempt are gone before the next one starts."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from orchestrator.rundir.paths import RunDir
from tests.e2e.support import (
    TRAIN,
    Supervised,
    Terminal,
    assert_nothing_left,
    clean_environment,
    events,
    wait_for,
)

Start = Callable[..., Supervised]

# The first attempt leaves a daemon that ignores signals, and its child, and dies. The second prints
# which of them are still alive.
LEAVES_A_DAEMON = """
if [ -e daemon ]; then
    kill -0 $(cat daemon) 2>/dev/null && echo it runs
    kill -0 $(cat child) 2>/dev/null && echo its child runs
    exit 0
fi
setsid bash -c 'trap "" TERM HUP; sleep 1000 & echo $! > child; echo $$ > daemon; wait' &
while [ ! -s daemon ] || [ ! -s child ]; do sleep 0.05; done
kill -9 $$
"""
LEAVES_A_SLEEPER = """
[ -e sleeper ] && exit 0
sleep 1000 &
echo $! > sleeper
wait
"""


def test_daemon_ends_with_its_attempt(supervise: Start, tmp_path: Path) -> None:
    """A daemonised descendant is killed before the next attempt."""
    run = supervise(command=["bash", "-c", LEAVES_A_DAEMON])
    assert run.end()[0] == 0
    assert len(events(run.run, "attempt_started")) == 2
    assert "runs" not in run.run.attempt(2).output_file.read_text()
    assert not psutil.pid_exists(int((tmp_path / "daemon").read_text()))
    assert_nothing_left(run.run)


def test_earlier_background_process_of_the_shell_is_not_killed(tmp_path: Path) -> None:
    """A process that the shell started before its exec of the supervisor is not touched."""
    script = (
        "sleep 1000 & echo $! > server; "
        f"exec {sys.executable} -m orchestrator run --run-dir run -- "
        "bash -c '[ -e second ] && exit 0; touch second; kill -9 $$'"
    )
    subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=clean_environment(), check=True, timeout=60
    )
    server = int((tmp_path / "server").read_text())
    assert len(events(RunDir(tmp_path / "run"), "attempt_started")) == 2
    os.kill(server, signal.SIGKILL)  # which fails if it has ended


def test_process_that_survives_sigkill_delays_the_next_attempt(
    supervise: Start, frozen: Callable[[int, bool], None], tmp_path: Path
) -> None:
    """No attempt starts while a process of the last one survives SIGKILL."""
    run = supervise(command=["bash", "-c", LEAVES_A_SLEEPER], stderr=(tmp_path / "log").open("w"))
    wait_for(lambda: (tmp_path / "sleeper").exists(), "the sleeper")
    sleeper = int(wait_for(lambda: (tmp_path / "sleeper").read_text(), "its number"))
    frozen(sleeper, True)
    os.kill(run.trainer_pid(), signal.SIGKILL)
    log = tmp_path / "log"
    wait_for(lambda: "the next attempt waits for their end" in log.read_text(), "the message")
    run.wait_for_event("restart_scheduled")
    assert f"process {sleeper} (sleep) is in uninterruptible sleep" in log.read_text()
    assert len(events(run.run, "attempt_started")) == 1
    frozen(sleeper, False)
    assert run.end()[0] == 0
    assert len(events(run.run, "attempt_started")) == 2


def test_next_attempt_waits_for_the_gpu_memory_of_the_last(
    supervise: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt starts when the driver no longer lists the last trainer."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!/bin/bash\necho >> {tmp_path}/asked\n[ -e {tmp_path}/released ] || cat {tmp_path}/pid\n"
    )
    program.chmod(0o755)
    command = ["bash", "-c", "[ -e pid ] && exit 0; echo $$ > pid; kill -9 $$"]
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    run = supervise(command=command)
    run.wait_for_event("restart_scheduled")
    asked = tmp_path / "asked"
    wait_for(lambda: asked.exists() and asked.read_text().count("\n") > 3, "questions")
    assert len(events(run.run, "attempt_started")) == 1
    (tmp_path / "released").touch()
    assert run.end()[0] == 0
    assert len(events(run.run, "attempt_started")) == 2


# --- the first process of a container -------------------------------------------------------------

CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
RUN = (*CONTAINER, sys.executable, "-m", "orchestrator", "run", "--run-dir", "run")
LEAVES_ORPHANS = """
for i in 1 2 3; do (sleep 0.1 & exec true); done
sleep 0.5
grep -l '^State:.Z' /proc/[0-9]*/status | grep -v self && echo a zombie
setsid sleep 1000 &
exit 0
"""


@pytest.fixture
def container() -> None:
    if subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to make a process namespace: unshare, as root")


@pytest.mark.usefixtures("container")
def test_first_process_of_a_container_reaps_orphans(tmp_path: Path) -> None:
    """As process 1 the supervisor reaps every orphan, and exits when the command has ended."""
    result = subprocess.run(
        [*RUN, "--", "bash", "-c", LEAVES_ORPHANS],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "zombie" not in result.stdout
    assert events(RunDir(tmp_path / "run"), "run_completed") != []


@pytest.mark.usefixtures("container")
def test_first_process_of_a_container_saves_on_signals(tmp_path: Path) -> None:
    """SIGTERM, which process 1 ignores without a handler, saves and stops the run."""
    train = [sys.executable, str(TRAIN), "--epochs", "50", "--step-seconds", "0.05"]
    process = subprocess.Popen(
        [*RUN, "--", *train], cwd=tmp_path, env=clean_environment(), stderr=subprocess.PIPE
    )
    run = RunDir(tmp_path / "run")
    try:
        wait_for(lambda: events(run, "checkpoint_published"), "a checkpoint")
        (supervisor,) = psutil.Process(process.pid).children()
        supervisor.terminate()
        assert process.wait(60) == 75
        assert events(run, "run_stopped")[0]["status"] == 75
    finally:
        process.kill()
        process.communicate()


@pytest.mark.usefixtures("container")
def test_interrupted_first_process_of_a_container_ends_with_130(tmp_path: Path) -> None:
    """Process 1 cannot end by SIGINT after a Ctrl-C, so it exits with 130."""
    terminal = Terminal(tmp_path, ["sleep", "1000"], through=CONTAINER)
    terminal.read_until("training started")
    terminal.press_ctrl_c()
    assert terminal.end() == 130
