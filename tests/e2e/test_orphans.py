"""A killed supervisor leaves no process behind, and the same command can be run again at once."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.system import process_tree
from tests.e2e.support import Supervised, wait_for

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
