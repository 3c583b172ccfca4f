"""The breakpoints that chaos sets inside the processes of a trial, and how it holds them there."""

import errno
import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.breakpoints.install import install
from orchestrator.breakpoints.table import BREAKPOINTS, SUPERVISOR, TRANSFORMERS, Breakpoint
from orchestrator.breakpoints.trial_files import RANK_VARIABLE, SOCKET_LINK, VARIABLE
from orchestrator.chaos.breakpoint_server import BreakpointServer, HeldProcess
from orchestrator.chaos.step_history import History
from orchestrator.ipc import messages
from orchestrator.system.durable import Disk
from tests.support import wait_until

REMOVE = """
import sys
from pathlib import Path
from orchestrator.breakpoints.install import install
from orchestrator.system.durable import Disk
install("supervisor")
Disk().remove(Path(sys.argv[1]))
"""


def name_of(point: Breakpoint) -> str:
    return point.name


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BreakpointServer]:
    """A trial's directory and socket."""
    server = BreakpointServer(tmp_path / "trial")
    yield server
    server.close()


@contextmanager
def start(server: BreakpointServer, file: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process of the trial that removes a file by way of Disk."""
    file.touch()
    with subprocess.Popen(
        [sys.executable, "-c", REMOVE, str(file)],
        env=os.environ | {VARIABLE: str(server.directory)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # a test that fails would wait for a process that is held


def held_at(server: BreakpointServer, breakpoint_name: str) -> HeldProcess:
    found: list[HeldProcess] = []

    def poll() -> bool:
        if (held := server.poll(breakpoint_name)) is not None:
            found.append(held)
        return bool(found)

    wait_until(poll, f"a process at {breakpoint_name}")
    return found[0]


# The tests of the integration reach those of transformers, whose import takes seconds.
POINTS = [p for part, all_ in BREAKPOINTS.items() if part != TRANSFORMERS for p in all_]


@pytest.mark.parametrize("point", POINTS, ids=name_of)
def test_method_of_each_breakpoint_exists(point: Breakpoint) -> None:
    """Every method that is wrapped is there, in the class that is named."""
    module, _, path = point.method.partition(":")
    class_name, _, method = path.partition(".")
    assert callable(getattr(getattr(importlib.import_module(module), class_name), method))


def test_rank_is_told_by_the_variable_of_the_contract() -> None:
    """The breakpoints, which import nothing of the package, read the same variable as it does."""
    assert RANK_VARIABLE == messages.RANK_VARIABLE


def test_nothing_is_wrapped_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a trial no method is replaced."""
    monkeypatch.delenv(VARIABLE, raising=False)
    before = Disk.remove
    install(SUPERVISOR)
    assert Disk.remove is before


def test_unarmed_breakpoint_is_passed_and_recorded(
    server: BreakpointServer, tmp_path: Path
) -> None:
    """A process passes a breakpoint that is not armed, and the history records it."""
    with start(server, tmp_path / "file") as process:
        assert process.wait(20) == 0
    assert not (tmp_path / "file").exists()
    assert History.read(server.history_file).reached == {"supervisor:remove"}


def test_held_process_waits_and_gets_the_error(server: BreakpointServer, tmp_path: Path) -> None:
    """At an armed breakpoint a process waits until it is released; its operation then fails."""
    server.arm("supervisor:remove")
    with start(server, tmp_path / "file") as process:
        held = held_at(server, "supervisor:remove")
        assert held.facts["pid"] == process.pid
        assert (tmp_path / "file").exists()
        held.release(errno.EIO)
        _, stderr = process.communicate(timeout=20)
    assert "OSError: [Errno 5] Input/output error" in stderr
    assert (tmp_path / "file").exists()


def test_held_process_gets_the_exception(server: BreakpointServer, tmp_path: Path) -> None:
    """A process that is released with an exception raises it at its breakpoint."""
    server.arm("supervisor:remove")
    with start(server, tmp_path / "file") as process:
        held_at(server, "supervisor:remove").release(exception="of the test")
        _, stderr = process.communicate(timeout=20)
    assert "RuntimeError: of the test" in stderr
    assert (tmp_path / "file").exists()


@contextmanager
def rank_at_step(server: BreakpointServer, rank: int) -> Iterator[socket.socket]:
    """Ask as a rank does that comes to an armed breakpoint."""
    message = {"breakpoint": "trainer:step", "arming": 1, "pid": 1, "rank": rank}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(os.readlink(server.directory / SOCKET_LINK))
        connection.sendall(json.dumps(message).encode() + b"\n")
        connection.settimeout(20)
        yield connection


def assert_released(connection: socket.socket) -> None:
    assert json.loads(connection.recv(1000)) == {"errno": None, "exception": None}


def test_rank_is_held_and_the_others_go_on(server: BreakpointServer) -> None:
    """Of several ranks that come to a breakpoint the awaited one is held, and no other one."""
    server.arm("trainer:step")
    with rank_at_step(server, 0) as other, rank_at_step(server, 1):
        assert server.poll("trainer:step", rank=1) is None
        assert_released(other)
        held = server.poll("trainer:step", rank=1)
    assert held is not None
    assert held.rank == 1


def test_process_of_an_earlier_arming_is_released(server: BreakpointServer) -> None:
    """A rank that came beside the awaited one is not taken for the next one that comes there."""
    server.arm("trainer:step")
    with rank_at_step(server, 1) as connection:
        server.arm("trainer:step")
        assert server.poll("trainer:step") is None
        assert_released(connection)


def test_held_process_ends_with_chaos(tmp_path: Path) -> None:
    """A process that is held when chaos is killed ends by itself."""
    server = BreakpointServer(tmp_path / "trial")
    server.arm("supervisor:remove")
    with start(server, tmp_path / "file") as process:
        held = held_at(server, "supervisor:remove")
        server.close()
        del held
        assert process.wait(20) == 1
    assert (tmp_path / "file").exists()


STEPS = """
import torch
from orchestrator.training import Session
with Session(model=torch.nn.Linear(1, 1)) as session:
    for step in session.steps(3):
        session.poll()
        session.step(**({"loss": 0.5} if step == 1 else {}))
"""


def test_step_without_metrics_is_recorded(server: BreakpointServer, tmp_path: Path) -> None:
    """A script that reports no metrics makes steps all the same; an empty poll tells nothing."""
    environment = os.environ | {VARIABLE: str(server.directory)}
    subprocess.run(
        [sys.executable, "-c", STEPS], cwd=tmp_path, env=environment, check=True, timeout=90
    )
    records = History.read(server.history_file).records
    assert [(record.kind, record.step, list(record.metrics)) for record in records] == [
        ("step", 1, []),
        ("step", 2, ["loss"]),
        ("step", 3, []),
    ]
