"""What processes have used, read from real ones."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.system.process_use import ProcessUse, Uses, used_between, uses_of
from tests.support import wait_until

SPINS = "while True: pass"
SLEEPS = "import time; time.sleep(1000)"
READS = "while True: open(__import__('sys').executable, 'rb').read(1 << 20)"
WRITES = "while True: open('log', 'a').write('a line\\n' * 10_000)"


@contextmanager
def python(code: str, directory: Path) -> Iterator[int]:
    """Run a program that never ends, once it has printed that it runs."""
    program = f"print('runs', flush=True)\n{code}"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("code", "grows"),
    [(SPINS, "cpu_seconds"), (READS, "moved_bytes"), (WRITES, "moved_bytes")],
    ids=["spins", "reads", "writes"],
)
def test_use_of_a_process_grows_with_what_it_does(tmp_path: Path, code: str, grows: str) -> None:
    """Processor time and bytes are counted."""
    with python(code, tmp_path) as pid:
        before = uses_of([pid])
        wait_until(lambda: getattr(used_between(before, uses_of([pid])), grows) > 0, grows)


def test_use_of_a_process_that_waits_does_not_grow(tmp_path: Path) -> None:
    """A second process that works beside it is no use of its own."""
    with python(SLEEPS, tmp_path) as pid, python(SPINS, tmp_path) as other:
        wait_until(lambda: Path(f"/proc/{pid}/wchan").read_text() != "0", "its sleep")
        before, other_before = uses_of([pid]), uses_of([other])
        wait_until(
            lambda: used_between(other_before, uses_of([other])).cpu_seconds > 0.2, "the other"
        )
        assert used_between(before, uses_of([pid])) == ProcessUse()


def test_processes_that_end_and_begin_are_told_apart() -> None:
    """One that is gone takes nothing away; one with its id counts from its own start."""
    before: Uses = {(1, "10"): ProcessUse(5.0, 500, 50), (2, "20"): ProcessUse(1.0, 100, 10)}
    after: Uses = {(2, "30"): ProcessUse(0.5, 7, 3)}
    assert used_between(before, after) == ProcessUse(0.5, 7, 3)


def test_process_that_has_ended_has_no_use() -> None:
    """It is left out."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert uses_of([process.pid]) == {}


def test_systems_without_proc_show_processor_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are unknown there, and count as none."""
    monkeypatch.setenv("ORCHESTRATOR_WITHOUT", "proc")
    with python(SPINS, tmp_path) as pid:
        wait_until(lambda: sum(u.cpu_seconds for u in uses_of([pid]).values()) > 0, "its time")
        assert [(u.moved_bytes, u.disk_bytes) for u in uses_of([pid]).values()] == [(0, 0)]
