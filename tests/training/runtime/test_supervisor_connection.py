"""The trainer's connection to a supervisor that answers once and then does nothing."""

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.ipc.control_page import ControlPage
from orchestrator.ipc.messages import (
    ATTEMPT_VARIABLE,
    PROTOCOL_VERSION,
    RUN_DIR_VARIABLE,
    SOCKET_VARIABLE,
    send_with_descriptors,
)
from orchestrator.snapshot.slots import Slots
from orchestrator.training.runtime.supervised import Supervised

DEADLINE_SECONDS = 4.0
MESSAGES = 2000  # more than half an hour of them


@pytest.fixture
def silent_supervisor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Welcomes one trainer and never reads again, as after Ctrl-Z in its terminal."""
    directory = tempfile.mkdtemp()  # a socket's path is short
    path = f"{directory}/s"
    page, descriptor = ControlPage.create()
    slots = Slots.create(page)
    welcome = {
        "type": "welcome",
        "protocol": PROTOCOL_VERSION,
        "run_id": "a run",
        "command": ["python", "train.py"],
        "every": {"amount": 600.0, "unit": "seconds"},
        "grace_seconds": 3600.0,
        "snapshot_budget": None,
        "snapshot_cost_seconds": None,
        "failures": None,
        "allow_data_change": False,
        "resume_generation": None,
        "writing_generations": [],
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(path)
        server.listen()
        accepted: list[socket.socket] = []

        def serve() -> None:
            connection, _ = server.accept()
            accepted.append(connection)
            output, unused = os.pipe()
            stacks = os.open(os.devnull, os.O_WRONLY)
            handed = [descriptor, *slots.descriptors, output, stacks]
            send_with_descriptors(connection, welcome, handed)
            for each in (output, unused, stacks):
                os.close(each)

        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setenv(SOCKET_VARIABLE, path)
        monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path))
        monkeypatch.setenv(ATTEMPT_VARIABLE, "1")
        yield
        thread.join(DEADLINE_SECONDS)
        for connection in accepted:
            connection.close()
    os.close(descriptor)
    slots.close()
    os.unlink(path)
    os.rmdir(directory)
    del page


@pytest.mark.usefixtures("silent_supervisor")
def test_stopped_supervisor_does_not_stop_the_trainer() -> None:
    """Metrics that no process reads are dropped: training never waits for a reader."""
    backend = Supervised()

    def show() -> None:
        for number in range(MESSAGES):
            backend.report_metrics({"loss": number / 7})

    watched = threading.Thread(target=show, daemon=True)
    watched.start()
    watched.join(DEADLINE_SECONDS)
    blocked = watched.is_alive()
    backend.leave(None, None)
    watched.join(DEADLINE_SECONDS)
    assert not blocked


@pytest.mark.parametrize("absent", [RUN_DIR_VARIABLE, ATTEMPT_VARIABLE])
def test_incomplete_environment_is_refused(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    """A socket without the run's directory or the attempt's number is refused with their names."""
    environment = {SOCKET_VARIABLE: "/nowhere", RUN_DIR_VARIABLE: "run", ATTEMPT_VARIABLE: "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(absent)
    with pytest.raises(ConfigError, match=rf"^cannot join .*{absent}"):
        Supervised()
