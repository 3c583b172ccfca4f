"""A session in a process of its own: signals to groups, children, workers, and a lost terminal."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoint.store import Store
from orchestrator.rundir.paths import RunDir
from orchestrator.system.stop_signals import MERGE_SECONDS
from orchestrator.training import Session
from tests.e2e.warm_python import TRAINING, WarmPython
from tests.support import wait_until
from tests.training.support import as_new_process

pytestmark = pytest.mark.processes

END_SECONDS = 15.0
PREAMBLE = """
import os, signal, sys, time
import torch
from torch.utils.data import DataLoader, Dataset
from orchestrator.training import Session

torch.set_num_threads(1)

class Data(Dataset):
    stuck_from = 10 ** 9

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        if index >= self.stuck_from:
            time.sleep(3600)
        return os.getpid()

def session():
    return Session(run_dir="run", model=torch.nn.Linear(1, 1))
"""


class Script:
    """A Python script that runs in a process group of its own, in the test's directory."""

    def __init__(
        self, directory: Path, body: str, stderr: int | None = None, **environment: str
    ) -> None:
        path = directory / "script.py"
        path.write_text(PREAMBLE + textwrap.dedent(body))
        self.process = WarmPython(
            [str(path)],
            TRAINING,
            cwd=directory,
            env=os.environ | environment,
            stderr=stderr,
            new_session=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        line: str = self.process.stdout.readline()
        assert line, "the script ended before it said anything"
        return line.strip()

    def status(self) -> int:
        """How it ended; fails when it does not end in time."""
        return self.process.wait(END_SECONDS)

    def group_is_gone(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True
        return False


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Any]:
    started: list[Script] = []

    def start(body: str, stderr: int | None = None, **environment: str) -> Script:
        started.append(Script(tmp_path, body, stderr, **environment))
        return started[-1]

    yield start
    for script in started:
        if not script.group_is_gone():
            os.killpg(script.process.pid, signal.SIGKILL)
        script.process.wait()
        if script.process.stdout is not None:
            script.process.stdout.close()


def saved(root: Path) -> list[tuple[int, str]]:
    checkpoints = Store.open(RunDir(root), []).all()
    return [(c.manifest.step, c.manifest.reason.value) for c in checkpoints]


def test_signal_to_the_whole_process_group_is_saved(scripts: Any, tmp_path: Path) -> None:
    """Loader workers live through what stops the trainer, then end with it; no process is left."""
    script = scripts(
        """
        loader = DataLoader(Data(), 2, num_workers=2, persistent_workers=True)
        with session() as s:
            for _ in s.epochs(1000):
                for _ in s.batches(loader):
                    s.step()
                    if s.global_step == 3:
                        print("training", flush=True)
        """
    )
    script.line()
    os.killpg(script.process.pid, signal.SIGTERM)
    assert script.status() == 75
    assert saved(tmp_path / "run")[-1][1] == "emergency"
    wait_until(script.group_is_gone, "the workers' end")


def test_stop_is_saved_when_standard_error_has_no_reader(scripts: Any, tmp_path: Path) -> None:
    """A closed terminal or pipe, which is often why the stop comes, does not prevent the save."""
    reading, writing = os.pipe()
    script = scripts(
        """
        with session() as s:
            for step in s.steps(10 ** 9):
                s.step()
                if step == 3:
                    print("training", flush=True)
        """,
        stderr=writing,
    )
    os.close(writing)
    script.line()
    os.close(reading)
    os.kill(script.process.pid, signal.SIGHUP)
    assert script.status() == 75
    assert saved(tmp_path / "run")[-1][1] == "emergency"


def test_short_memory_while_resuming_leaves_the_checkpoints_alone(
    scripts: Any, tmp_path: Path
) -> None:
    """A checkpoint that cannot be loaded for lack of memory is not set aside; later it serves."""
    body = """
        import resource
        model = torch.nn.Linear(4000, 4000)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        if "TIGHT" in os.environ:
            resource.setrlimit(resource.RLIMIT_AS, (used + 40_000_000,) * 2)
        with Session(run_dir="run", model=model) as s:
            print("begins at", s.global_step, flush=True)
            for _ in range(3):
                s.step()
                s.checkpoint()
            os._exit(0)
        """
    assert scripts(body).status() == 0
    before = saved(tmp_path / "run")
    tight = scripts(body, stderr=subprocess.PIPE, TIGHT="1")
    assert tight.status() == 1
    error = tight.process.stderr.read()
    tight.process.stderr.close()
    assert "cannot load" in error
    assert "allocate memory" in error
    assert saved(tmp_path / "run") == before
    assert scripts(body).line() == "begins at 3"


STEPPING = """
    with session() as s:
        for step in s.steps(10 ** 9):
            if step == 3:
                print("training", flush=True)
                time.sleep(1)
            s.step()
    """


def test_two_hangups_of_one_closed_terminal_save(scripts: Any, tmp_path: Path) -> None:
    """The kernel and the shell both hang up: that is one request, and the state is saved."""
    script = scripts(STEPPING, stderr=subprocess.PIPE)
    script.line()
    os.kill(script.process.pid, signal.SIGHUP)
    # A hint may come before it.
    assert any("saving at the next safe point" in line for line in script.process.stderr)
    os.kill(script.process.pid, signal.SIGHUP)
    assert script.status() == 75
    script.process.stderr.close()
    assert saved(tmp_path / "run")[-1] == (4, "emergency")


def test_second_signal_ends_the_process_at_once(scripts: Any, tmp_path: Path) -> None:
    """Once more, and later than an echo, a signal does what it does in any script."""
    # Not one long sleep: a signal that comes an instant before it would be handled after it.
    long = STEPPING.replace("time.sleep(1)", "[time.sleep(0.1) for _ in range(36000)]")
    script = scripts(long, stderr=subprocess.PIPE)
    script.line()
    os.kill(script.process.pid, signal.SIGTERM)
    script.process.stderr.readline()
    time.sleep(2 * MERGE_SECONDS)
    os.kill(script.process.pid, signal.SIGTERM)
    assert script.status() == -signal.SIGTERM
    script.process.stderr.close()
    assert saved(tmp_path / "run")[-1] == (1, "periodic")


def test_killed_run_is_free_while_its_children_run(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that a killed script has forked, such as a loader worker, does not hold the run."""
    script = scripts(
        """
        import multiprocessing
        with session() as s:
            s.step()
            s.checkpoint()
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,))
            child.start()
            print(child.pid, flush=True)
            time.sleep(3600)
        """
    )
    child = int(script.line())
    script.process.kill()
    script.process.wait()
    os.kill(child, 0)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "script.py")])
    with Session(run_dir=tmp_path / "run", model=torch.nn.Linear(1, 1)) as session:
        assert session.global_step == 1


def test_finished_run_is_free_while_its_children_run(tmp_path: Path) -> None:
    """After the `with` block the run can be opened again, whatever was forked inside it."""
    with Session(run_dir=tmp_path / "run", model=torch.nn.Linear(1, 1)) as session:
        session.step()
        child = multiprocessing.get_context("fork").Process(target=signal.pause)
        child.start()
    as_new_process()
    try:
        with Session(run_dir=tmp_path / "run", model=torch.nn.Linear(1, 1)) as session:
            assert session.global_step == 1
    finally:
        child.kill()
        child.join()


def test_stuck_workers_do_not_hold_up_the_end(scripts: Any, tmp_path: Path) -> None:
    """A worker that hangs in a read is ended with the session, not waited for at exit."""
    script = scripts(
        """
        # What torch itself waits for a worker, and then sends a SIGTERM that it does not hear.
        torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.1
        data = Data()
        data.stuck_from = 4
        with session() as s:
            for _ in s.epochs(1):
                for pids in s.batches(DataLoader(data, 2, num_workers=2)):
                    s.step()
                    if s.global_step == 2:
                        signal.raise_signal(signal.SIGTERM)
                        s.poll()
        """
    )
    assert script.status() == 75
    assert saved(tmp_path / "run")[-1] == (2, "emergency")
    wait_until(script.group_is_gone, "the workers' end")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_of_every_start_method_are_shielded(scripts: Any, method: str) -> None:
    """The stop signals are blocked in workers that are not forked from the trainer, too."""
    script = scripts(
        f"""
        def blocked(pid):
            with open(f"/proc/{{pid}}/status") as file:
                lines = dict(line.split(":", 1) for line in file)
            return int(lines["SigBlk"], 16)

        if __name__ == "__main__":
            with session() as s:
                loader = DataLoader(
                    Data(), 1000, num_workers=1, multiprocessing_context="{method}"
                )
                for pids in s.batches(loader):
                    mask = blocked(pids[0].item())
                    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
                    numbers = [signal.Signals[name] for name in names]
                    exposed = [n.name for n in numbers if not mask >> (n - 1) & 1]
                    print("exposed to", exposed, flush=True)
                    s.step()
        """
    )
    assert script.line() == "exposed to []"
    assert script.status() == 0


@pytest.mark.parametrize(
    "leave", ["break", "sys.exit(5)", "raise ValueError", "s.step()", "s.checkpoint()"]
)
def test_forked_child_that_leaves_the_block_is_not_the_session(
    leave: str, scripts: Any, tmp_path: Path
) -> None:
    """A child of a fork saves nothing and ends nothing, however it leaves; the parent completes."""
    script = scripts(
        f"""
        parent = os.getpid()
        with session() as s:
            for step in s.steps(4):
                if step == 2:
                    child = os.fork()
                    if child == 0:
                        {leave}
                    print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
                s.step()
                if os.getpid() != parent:
                    break
        if os.getpid() != parent:
            os._exit(7)
        """
    )
    expected = {"break": 7, "sys.exit(5)": 5, "raise ValueError": 1}
    assert script.line() == f"child {expected.get(leave, 78)}"
    assert script.status() == 0
    assert saved(tmp_path / "run")[-1] == (4, "final")
    events = (tmp_path / "run" / "journal.jsonl").read_text()
    assert events.count("run_completed") == 1
    assert "run_stopped" not in events
