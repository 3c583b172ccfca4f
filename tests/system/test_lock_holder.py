"""A signal goes only to the process that holds the lock, whatever a note says."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.system.lock_holder import holder_of, signal_holder

HOLD = (
    "import fcntl, sys, time; file = open(sys.argv[1], 'a'); "
    "fcntl.flock(file, int(sys.argv[2])); print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


def start(children: list[subprocess.Popen[str]], file: Path, how: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", HOLD, str(file), str(how)]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    children.append(child)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


@pytest.mark.parametrize("without", ["", "proc"])
def test_signal_reaches_the_holder(
    tmp_path: Path,
    children: list[subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
    without: str,
) -> None:
    """The process that holds the exclusive lock gets the signal, without /proc too."""
    monkeypatch.setenv("ORCHESTRATOR_WITHOUT", without)
    holder = start(children, tmp_path / "lock", 2)
    assert holder_of(tmp_path / "lock") == holder.pid
    signal_holder(holder.pid, tmp_path / "lock", signal.SIGUSR1)
    assert holder.wait(10) == -signal.SIGUSR1


@pytest.mark.parametrize("without", ["", "proc"])
def test_signal_reaches_no_other(
    tmp_path: Path,
    children: list[subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
    without: str,
) -> None:
    """No other number reaches a process: of a bystander, a group, a reader, or out of range."""
    monkeypatch.setenv("ORCHESTRATOR_WITHOUT", without)
    holder = start(children, tmp_path / "lock", 2)
    bystander = start(children, tmp_path / "another", 2)
    before = os.getpid()
    for pid in (-1, 0, 1, 2**31, 2**70, -bystander.pid, bystander.pid, before, os.getppid()):
        with pytest.raises((ProcessLookupError, PermissionError)):
            # Signal 0 reaches nothing, should this ever fail.
            signal_holder(pid, tmp_path / "lock", 0)
    assert (holder.poll(), bystander.poll()) == (None, None)


def test_signal_needs_the_exclusive_lock(
    tmp_path: Path, children: list[subprocess.Popen[str]]
) -> None:
    """A process that only reads the lock, or shares it, is not signalled."""
    sharer = start(children, tmp_path / "lock", 1)
    with pytest.raises(ProcessLookupError, match="does not hold"):
        signal_holder(sharer.pid, tmp_path / "lock", signal.SIGUSR1)
    assert holder_of(tmp_path / "lock") is None
    assert sharer.poll() is None
