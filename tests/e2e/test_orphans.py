"""A killed supervisor leaves no process behind, and the same command can be run again at once."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.checkpoint.temporary import trash_path
from orchestrator.rundir.lock import BUSY_TIMEOUT_SECONDS
from orchestrator.system import process_tree
from tests.e2e.support import TRAIN, Supervised, forked_by, kill_all_runs, wait_for

Start = Callable[..., Supervised]

# The second start of a command has nothing to do.
ONCE = """
import os, signal, subprocess, sys, time
def begin():
    with open('pids', 'a') as file:
        print(os.getpid(), file=file)
    time.sleep(300)
if os.path.exists('started'):
    sys.exit(0)
"""
START = "open('started', 'w').close()\n"
SCRIPTS = {
    "an import": f"{START}begin()",
    "a command that ignores the stop": (
        f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{START}begin()"
    ),
    "a child without the lock": (
        "if sys.argv[1:]:\n"
        f"    {START}    begin()\n"
        "subprocess.run([sys.executable, __file__, 'child'])"
    ),
    "daemons": f"for i in range(2):\n    os.fork() or os.setsid()\n{START}begin()",
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("runs_again", [True, False], ids=["rerun", "alone"])
def test_orphans_of_a_killed_supervisor_end(
    supervise: Start, tmp_path: Path, script: str, runs_again: bool
) -> None:
    """A command without a session ends after its supervisor; a rerun waits for that and goes on."""
    (tmp_path / "script.py").write_text(ONCE + SCRIPTS[script])
    command = ["sh", "-c", f"{sys.executable} script.py; exit $?"]
    run = supervise(command=command, options=("--grace", "1s"))
    pids = tmp_path / "pids"
    wait_for(lambda: (tmp_path / "started").exists() and pids.exists(), "the command")
    run.signal(signal.SIGKILL)
    if runs_again:
        status, _, stderr = supervise(command=command, options=("--grace", "1s")).end()
        assert status == 0, stderr
    started = [int(line) for line in pids.read_text().split()]
    wait_for(lambda: all(map(process_tree.has_ended, started)), "the end of the orphans", 20)
    run.end()


def test_run_in_use_is_not_taken_for_orphans(supervise: Start, tmp_path: Path) -> None:
    """A second supervisor is refused while the first lives, and ends nothing of it."""
    (tmp_path / "script.py").write_text(ONCE + SCRIPTS["an import"])
    command = [sys.executable, "script.py"]
    run = supervise(command=command)
    wait_for(lambda: (tmp_path / "pids").exists(), "the command")
    assert supervise(command=command).end()[0] == 69
    os.kill(int((tmp_path / "pids").read_text()), 0)
    run.signal(signal.SIGTERM)
    run.end()


def test_rerun_waits_for_a_supervisor_that_is_being_killed(
    supervise: Start, frozen: Callable[[int, bool], None], tmp_path: Path
) -> None:
    """A supervisor that SIGKILL has reached and not yet ended does not count as one in use."""
    command = ["bash", "-c", "[ -e started ] && exit 0; touch started; sleep 300"]
    run = supervise(command=command)
    wait_for(lambda: (tmp_path / "started").exists(), "the command")
    frozen(run.process.pid, True)
    run.signal(signal.SIGKILL)
    again = supervise(command=command, options=("--grace", "1s"))
    refused = time.monotonic() + 10 * BUSY_TIMEOUT_SECONDS
    wait_for(lambda: again.process.poll() or time.monotonic() > refused, "a refusal")
    assert again.process.poll() is None, again.end()
    frozen(run.process.pid, False)
    assert again.end()[0] == 0


@pytest.mark.parametrize("name", ["short", "long" * 30])
def test_killed_supervisor_leaves_no_socket(
    tmp_path: Path, warm_server: Path, name: str, request: pytest.FixtureRequest
) -> None:
    """The socket of a run that is not started again goes, also one in a temporary directory."""
    root, temporary = tmp_path / name, tmp_path / "t"
    root.mkdir()
    temporary.mkdir()
    variables = dict.fromkeys(("TMPDIR", "XDG_RUNTIME_DIR"), str(temporary))
    command = [*forked_by(warm_server), str(TRAIN), "--step-seconds", "0.1"]
    run = Supervised(root, command=command, environment=variables)
    request.addfinalizer(lambda: kill_all_runs([run]))
    run.wait_for_event("checkpoint_published")
    sockets = [run.run.root / "socket", *temporary.glob("*/socket")]
    assert [path.is_socket() for path in sockets] == ([True] if name == "short" else [False, True])
    run.signal(signal.SIGKILL)
    run.end()
    wait_for(lambda: not any(path.exists() for path in sockets), "the removal of the socket")
    wait_for(lambda: not list(temporary.iterdir()), "the removal of its directory")


def test_complete_run_is_cleaned(supervise: Start, tmp_path: Path) -> None:
    """What the killed process of a complete run has left goes when the command is given again."""
    run = supervise("--epochs", "1")
    assert run.end()[0] == 0
    before = set(run.run.root.rglob("*"))
    for path in (run.run.checkpoints / ".writing-0123456789abcdef", trash_path(run.run, "step-1")):
        path.mkdir()
        (path / "state.pt").touch()
    (run.run.root / ".done.json.0123abcd").touch()
    (run.run.attempt(1).root / ".exit.json.0123abcd").touch()
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(run.run.root / "socket"))
    assert supervise("--epochs", "1").end()[0] == 0
    assert set(run.run.root.rglob("*")) == before
