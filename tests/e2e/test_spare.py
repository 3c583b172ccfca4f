"""Training continues in the spare after the trainer's death, as in any other process."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.support import (
    TRAIN,
    Supervised,
    assert_nothing_left,
    assert_same_result,
    clean_environment,
    events,
    live_status,
    processes_of,
    wait_for,
)

# The variables that a run adds to the environment.
RUN_VARIABLES = ("ORCHESTRATOR_", "WANDB_RUN_ID", "WANDB_RESUME")

Start = Callable[..., Supervised]

CONFORMANCE = Path(__file__).with_name("conformance.py")
SLOW = ("--epochs", "3000", "--step-seconds", "0.02")
WAIT = ("--run-at", "70", "--code", "while Path('wait').exists(): time.sleep(0.02)")


def wait_for_spare(run: Supervised) -> int:
    """Wait for a spare that is ready, and return its process id."""

    def pid() -> int | None:
        status = live_status(run)
        ready = (status.get("spare") or {}).get("state") == "ready"
        return status["spare_pid"] if ready else None

    run.wait_for_event("attempt_started")
    found = wait_for(pid, "a spare that is ready")
    assert found is not None
    return found


# How the script is run, and its options. A spawned loader imports torch again, for two seconds.
FORMS = {
    "script": (["folder/script.py"], ["--torch", "--spawn"]),
    "module": (
        ["-u", "-X", "utf8", "-W", "error::UserWarning", "-m", "package.script"],
        ["--torch"],
    ),
}


@pytest.mark.long
@pytest.mark.parametrize(("words", "looks"), FORMS.values(), ids=FORMS)
def test_script_sees_the_same_under_python_cold_and_in_a_spare(
    supervise: Start, tmp_path: Path, words: list[str], looks: list[str]
) -> None:
    """A script sees the same environment under python, in a cold start and in a spare."""
    for folder in ("folder", "package"):
        (tmp_path / folder).mkdir()
        shutil.copy(CONFORMANCE, tmp_path / folder / "script.py")
    (tmp_path / "train").touch()
    command = [sys.executable, *words, str(tmp_path / "facts"), *looks]
    run = supervise(command=command, options=("--spare",), stdin=subprocess.DEVNULL)
    wait_for_spare(run)
    (tmp_path / "train").unlink()
    status, _, stderr = run.end()
    assert status == 0, stderr
    assert [e["from_spare"] for e in events(run.run, "attempt_started")] == [False, True]
    bare = subprocess.run(
        command,
        cwd=tmp_path,
        env=clean_environment() | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        timeout=90,
    )
    assert bare.returncode == 0
    names = ("facts", "facts1", "facts2")
    alone, cold, warm = (comparable(tmp_path / name, tmp_path) for name in names)
    # torch has another seed in each process, and so it has in a spare.
    assert len({facts["torch"].pop("seed") for facts in (alone, cold, warm)}) == 3
    assert alone == cold
    assert cold == warm
    assert set(warm["torch"]["loaders"].values()) == {True}


def comparable(facts: Path, root: Path) -> dict[str, Any]:
    """Return what a script saw, without what differs between processes and attempts."""
    # torch 2.7 to 2.9 put a folder with a random name on sys.path.
    text = re.sub(
        rf'"{tempfile.gettempdir()}/tmp\w{{8}}"', '"a temporary folder"', facts.read_text()
    )
    content: dict[str, Any] = json.loads(text)
    # Thread pools that libraries start when they are imported are started later in a spare.
    del content["Threads"]
    # The spare is below the script on the stack.
    content["callers"] = [
        c for c in content["callers"] if not c.endswith(("spare_process.py", "<string>"))
    ]
    for key in ("environ", "environb"):
        content[key] = {k: v for k, v in content[key].items() if not k.startswith(RUN_VARIABLES)}
    content["child's environment"] = [
        line for line in content["child's environment"] if not line.startswith(RUN_VARIABLES)
    ]
    # A supervisor passes the run lock and its invitation on.
    inherited = {f"{root / 'run' / 'lock'} True", "socket True"}
    content["descriptors"] = [d for d in content["descriptors"] if d not in inherited]
    return content


def test_training_in_a_spare_ends_with_the_same_bits(
    supervise: Start, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    """Killed twice with one spare, training ends with the bits of the undisturbed run."""
    arguments = ("--epochs", "6", "--step-seconds", "0.02", "--workers", "2", *WAIT)
    (tmp_path / "wait").touch()
    run = supervise(*arguments, "--result", str(tmp_path / "r.pt"), options=("--spare",), cold=True)
    spare = wait_for_spare(run)
    os.kill(run.trainer_pid(), signal.SIGKILL)
    (tmp_path / "wait").unlink()
    run.wait_for_event("resumed")
    os.kill(run.trainer_pid(), signal.SIGKILL)
    run.wait_for_event("resumed", count=2)
    assert wait_for_spare(run) == spare
    assert run.end()[0] == 0
    assert [e["from_spare"] for e in events(run.run, "attempt_started")] == [False, True, True]
    assert_same_result(tmp_path / "r.pt", uninterrupted(*arguments))
    assert_nothing_left(run.run)


def test_stop_signal_to_all_processes_saves_with_a_spare(supervise: Start) -> None:
    """A SIGTERM to the spare and to the trainer that it forked saves and ends the run."""
    run = supervise(*SLOW, options=("--spare",), cold=True)
    spare = wait_for_spare(run)
    os.kill(run.trainer_pid(), signal.SIGKILL)
    run.wait_for_event("resumed")
    assert run.trainer_pid() != spare == wait_for_spare(run)
    run.signal_all(signal.SIGTERM)
    assert run.end()[0] == 75
    assert_nothing_left(run.run)


def test_spare_ends_with_a_killed_supervisor(supervise: Start) -> None:
    """After a SIGKILL of the supervisor neither the spare nor the lock remains."""
    run = supervise(*SLOW, options=("--spare",), cold=True)
    assert wait_for_spare(run) in {process.pid for process in processes_of(run.run)}
    run.signal(signal.SIGKILL)
    run.end()
    assert_nothing_left(run.run)


def test_attempt_starts_cold_if_the_spare_fails(supervise: Start) -> None:
    """If the spare does not take over, the same attempt starts cold."""
    run = supervise(*SLOW, options=("--spare", "--max-restarts", "1"), cold=True)
    os.kill(wait_for_spare(run), signal.SIGSTOP)
    os.kill(run.trainer_pid(), signal.SIGKILL)
    run.wait_for_event("resumed")
    assert [e["from_spare"] for e in events(run.run, "attempt_started")] == [False, False]
    assert len(events(run.run, "restart_scheduled")) == 1
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 75
    assert_nothing_left(run.run)


def test_shell_command_gets_no_spare(supervise: Start) -> None:
    """A command that is not Python gets no spare, and the status says why."""
    command = ["bash", "-c", f"{sys.executable} {TRAIN} {' '.join(SLOW)}; true"]
    run = supervise(command=command, options=("--spare",), cold=True)
    run.wait_for_event("checkpoint_published")
    assert "is not PYTHON script.py" in run.status()["spare"]["reason"]
    run.signal(signal.SIGTERM)
    run.end()
