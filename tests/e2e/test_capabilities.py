"""Systems without features of Linux: each one disabled, and all of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.ipc.control_page import anonymous_file
from orchestrator.system import process_tree
from orchestrator.system.capabilities import ALL, WITHOUT_VARIABLE, Capability, is_available
from orchestrator.system.direct_file import DirectFile
from tests.e2e.support import (
    Supervised,
    WarmTrainers,
    assert_all_valid,
    assert_nothing_left,
    assert_same_result,
    events,
)

Start = Callable[..., Supervised]
ARGUMENTS = ("--epochs", "3", "--samples", "64", "--step-seconds", "0.01")
OPTIONS = ("--snapshot-budget", "50%")


@pytest.mark.parametrize("without", list(Capability))
def test_killed_trainer_resumes_without_the_capability(
    supervise: Start,
    warm_trainers: WarmTrainers,
    uninterrupted: Callable[..., Path],
    tmp_path: Path,
    without: str,
) -> None:
    """Without the feature a killed trainer is restarted, and the result is the undisturbed one."""
    result = tmp_path / "result.pt"
    run = supervise(
        command=[*warm_trainers.command, *ARGUMENTS, "--result", str(result)],
        options=OPTIONS,
        environment={WITHOUT_VARIABLE: without},
    )
    trainer = warm_trainers.newest()
    run.wait_for_output("epoch 0 done")
    assert trainer is not None
    trainer.kill()
    assert run.end()[0] == 0
    assert len(events(run.run, "attempt_started")) == 2
    assert_same_result(result, uninterrupted(*ARGUMENTS))
    assert_all_valid(run.run)


def test_workers_end_and_a_stop_saves_without_any_capability(supervise: Start) -> None:
    """Loader workers do not outlive a killed trainer, and a stop of the next one saves."""
    run = supervise(
        *("--epochs", "500", "--step-seconds", "0.05", "--workers", "2", "--persistent"),
        options=OPTIONS,
        environment={WITHOUT_VARIABLE: ALL},
    )
    run.wait_for_output("epoch 0 done")
    group = run.trainer_pid()
    os.kill(group, signal.SIGKILL)
    run.wait_for_event("attempt_started", count=2)
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
    run.wait_for_event("resumed")
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 75
    assert_nothing_left(run.run)
    assert_all_valid(run.run)


@pytest.mark.parametrize("value", ["memfd,direct_io", ALL])
def test_disabled_capability_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str
) -> None:
    """Snapshot memory is an unnamed file then, and large writes are buffered."""
    monkeypatch.setenv(WITHOUT_VARIABLE, value)
    descriptor = anonymous_file("page")
    target = os.readlink(f"/proc/self/fd/{descriptor}")
    os.close(descriptor)
    assert "memfd" not in target
    with DirectFile(tmp_path / "file") as file:
        assert not file._is_direct
        assert file.write(bytes(5000)) == 5000
    assert is_available(Capability.SUBREAPER) is (value != ALL)


def test_processes_are_found_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Psutil finds children, and tells whether they are dead."""
    monkeypatch.setenv(WITHOUT_VARIABLE, Capability.PROC)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.pid in process_tree.children_of(os.getpid())
    look = process_tree.Process.read(child.pid)
    assert look is not None
    assert not look.is_dead
    child.kill()
    assert process_tree.wait_for_exit([child.pid], 20.0) == []
    child.communicate()


def test_process_group_is_killed_after_its_leader_has_ended() -> None:
    """On a system without a subreaper the process group still contains the orphans."""
    shell = subprocess.Popen(
        ["sh", "-c", "sleep 1000 & sleep 1000 & echo"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert shell.stdout is not None
    shell.stdout.readline()
    shell.wait()
    began = time.monotonic()
    process_tree.kill_process_group(shell.pid, 60.0)
    assert time.monotonic() - began < 60.0
    with pytest.raises(ProcessLookupError):
        os.killpg(shell.pid, 0)
    shell.stdout.close()
