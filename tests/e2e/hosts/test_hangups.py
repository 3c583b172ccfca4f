"""Terminals that disappear: a tmux session that is killed, an ssh connection that drops."""

import getpass
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from orchestrator.rundir.lock import lock_owner
from orchestrator.rundir.paths import RunDir
from tests.e2e.hosts.need import skip_or_fail
from tests.e2e.hosts.slurm_cluster import free_port
from tests.e2e.support import (
    TRAIN,
    assert_all_valid,
    assert_nothing_left,
    clean_environment,
    events,
    kill_leftovers,
    wait_for,
)

pytestmark = pytest.mark.processes

HangUp = Callable[[], object]
Terminal = Callable[[Path, str], AbstractContextManager[HangUp]]


@contextmanager
def in_tmux(root: Path, command: str) -> Iterator[HangUp]:
    """Run a command in its own tmux server, and return a function that kills the session."""
    if not (tmux := shutil.which("tmux")):
        skip_or_fail("tmux is not installed")
    ours = (tmux, "-f", os.devnull, "-S", str(root / "tmux.sock"))
    new = [*ours, "new-session", "-d", "-s", "training", command]
    subprocess.run(new, env=clean_environment(), check=True, timeout=30)
    yield lambda: subprocess.run([*ours, "kill-session", "-t", "training"], check=True, timeout=30)
    subprocess.run([*ours, "kill-server"], timeout=30, stderr=subprocess.DEVNULL)


@contextmanager
def over_ssh(root: Path, command: str) -> Iterator[HangUp]:
    """Run a command in a terminal over ssh; return a function that cuts the connection."""
    sshd, keygen = shutil.which("sshd", path="/usr/sbin:/usr/bin"), shutil.which("ssh-keygen")
    if not (sshd and keygen):
        skip_or_fail("no ssh server is installed")
    key, known, config, log = (root / name for name in ("key", "known", "sshd_config", "sshd.log"))
    port = free_port()
    subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=30)
    public = key.with_suffix(".pub").read_text()
    known.write_text(f"[127.0.0.1]:{port} {public}")
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {key}\nAuthorizedKeysFile {key}.pub\n"
        f"UsePAM no\nStrictModes no\nPermitRootLogin yes\nPidFile none\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it separates privileges
    client = (
        *("ssh", "-tt", "-F", os.devnull, "-p", str(port), "-i", str(key)),
        *("-o", f"UserKnownHostsFile={known}", f"{getpass.getuser()}@127.0.0.1", command),
    )
    with ExitStack() as ends:
        with open(log, "w") as output:
            server = subprocess.Popen([sshd, "-D", "-e", "-f", config], stderr=output)
        ends.callback(_end, server)
        wait_for(lambda: "listening" in log.read_text(), "an ssh server")
        person = subprocess.Popen(client, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        ends.callback(_end, person)
        yield lambda: person.send_signal(signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@pytest.mark.parametrize("terminal", [in_tmux, over_ssh])
def test_run_is_saved_when_its_terminal_disappears(tmp_path: Path, terminal: Terminal) -> None:
    """The state is saved, no process is left, and the run can be resumed."""
    run = RunDir(tmp_path / "run")
    training = (
        *("env", "-C", str(tmp_path), "ORCHESTRATOR_SPARE=off"),
        *(sys.executable, "-m", "orchestrator", "run", "--run-dir", str(run.root), "--"),
        *(sys.executable, str(TRAIN), "--epochs", "1000", "--step-seconds", "0.05"),
    )
    with terminal(tmp_path, shlex.join(training)) as hang_up:
        try:
            wait_for(lambda: events(run, "checkpoint_published"), "a checkpoint")
            hang_up()
            wait_for(lambda: events(run, "run_stopped"), "the end of the run")
            wait_for(lambda: lock_owner(run) is None, "a free lock")
        finally:
            kill_leftovers(run)
    assert events(run, "stop_requested")[0]["source"] == "SIGHUP"
    assert events(run, "checkpoint_published")[-1]["reason"] == "emergency"
    assert events(run, "run_stopped")[-1]["status"] == 75
    assert_all_valid(run)
    assert_nothing_left(run)
