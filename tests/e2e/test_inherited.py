"""What the trainer inherits: a way to the supervisor that needs no path, and given descriptors."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from orchestrator.rundir.lock import lock_owner
from tests.e2e.support import (
    DEADLINE_SECONDS,
    TRAIN,
    Supervised,
    clean_environment,
    events,
    orchestrator,
    wait_for,
)

Start = Callable[..., Supervised]

WRAPPER = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
WRAPPERS = {
    "none": (),
    "one that keeps descriptors": ("sh", "-c", '"$@"; exit $?', "sh"),
    "one that closes descriptors": (sys.executable, "-c", WRAPPER),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_next_trainer_and_the_commands_reach_a_supervisor_whose_socket_was_removed(
    supervise: Start, wrapper: str
) -> None:
    """A removed socket is made again, and a trainer that inherits the invitation needs none."""
    script = [sys.executable, str(TRAIN), "--epochs", "6", "--step-seconds", "0.05"]
    run = supervise(command=[*WRAPPERS[wrapper], *script], options=("--every", "5steps"))
    run.wait_for_event("checkpoint_published")
    owner = lock_owner(run.run)
    assert owner is not None
    os.unlink(owner["socket"])
    assert orchestrator("checkpoint", str(run.run.root), cwd=run.run.root).returncode == 0
    command = psutil.Process(run.trainer_pid())
    [command, *command.children(recursive=True)][len(WRAPPERS[wrapper]) > 0].kill()
    status, _, stderr = run.end()
    assert (status, len(events(run.run, "resumed"))) == (0, 1), stderr
    assert not Path(owner["socket"]).exists()


def test_invited_trainer_needs_no_socket_at_all(supervise: Start, tmp_path: Path) -> None:
    """A session connects through the invitation while the path leads nowhere."""
    script = tmp_path / "script.py"
    text = (
        "import os, sys\nos.environ['ORCHESTRATOR_SOCKET'] = '/nowhere'\nsys.argv = ['train.py']\n"
    )
    script.write_text(text + f"exec(open({str(TRAIN)!r}).read())")
    run = supervise(command=[sys.executable, str(script)])
    assert run.end()[0] == 0
    assert events(run.run, "checkpoint_published")


READ = "import os, sys; print('read', open(sys.argv[1]).read().strip())"
GIVEN = {
    "a process substitution": f"{sys.executable} -m orchestrator run --run-dir run -- "
    f'{sys.executable} -c "{READ}" <(echo given)',
    "a file": f"exec 7< file; {sys.executable} -m orchestrator run --run-dir run -- "
    f'{sys.executable} -c "{READ}" /dev/fd/7',
    "a file of a run in the background": f"exec 7< file; {sys.executable} -m orchestrator run "
    f'--detach --run-dir run -- {sys.executable} -c "{READ}" /dev/fd/7',
}


@pytest.mark.parametrize("given", GIVEN)
def test_command_gets_the_descriptors_that_the_supervisor_was_given(
    tmp_path: Path, given: str
) -> None:
    """A descriptor that a shell opens for the supervisor is open in the command."""
    (tmp_path / "file").write_text("given")
    subprocess.run(
        ["bash", "-c", GIVEN[given]],
        cwd=tmp_path,
        env=clean_environment(),
        check=True,
        timeout=DEADLINE_SECONDS,
    )
    output = tmp_path / "run" / "attempts" / "0001" / "output.log"
    wait_for(lambda: "read given" in output.read_text(), "the output")


def test_command_gets_a_socket_of_a_parent_and_no_descriptor_of_the_supervisor(
    tmp_path: Path,
) -> None:
    """A socket that a parent passes on works, and it is the only one beside lock and invitation."""
    ours, theirs = socket.socketpair()
    number = theirs.fileno()
    code = (
        f"import os, socket; s = socket.socket(fileno={number}); "
        "s.send(' '.join(n for n in os.listdir('/proc/self/fd')).encode())"
    )
    with ours, theirs:
        subprocess.run(
            [
                *(sys.executable, "-m", "orchestrator", "run", "--run-dir", "run", "--"),
                *(sys.executable, "-c", code),
            ],
            cwd=tmp_path,
            env=clean_environment(),
            pass_fds=(number,),
            check=True,
            timeout=DEADLINE_SECONDS,
        )
        # Standard input, output and error, the listing itself, the socket, lock and invitation.
        assert len(ours.recv(1000).split()) == 7
