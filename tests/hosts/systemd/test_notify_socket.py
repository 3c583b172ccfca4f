"""Messages to a service manager, received on a real socket."""

import array
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.hosts.systemd.notify_socket import Notifier


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """Yield a manager's address, as in the environment, and its socket."""
    name = f"{tmp_path}/notify" if request.param == "file" else f"@orchestrator-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0", 1))
        listening.settimeout(5)
        yield name, listening


def test_assignments_arrive_in_one_datagram(manager: tuple[str, socket.socket]) -> None:
    """A message arrives as one datagram, at a path and at an abstract name."""
    address, listening = manager
    assert Notifier(address).send("READY=1", "STATUS=well")
    assert listening.recv(4096) == b"READY=1\nSTATUS=well"


def test_stored_descriptor_arrives_with_its_name(
    manager: tuple[str, socket.socket], tmp_path: Path
) -> None:
    """The manager receives the open file and its name."""
    address, listening = manager
    with (tmp_path / "kept").open("w") as file:
        Notifier(address).store("memory", file.fileno())
        text, rights, _, _ = listening.recvmsg(4096, 4096)
        assert text == b"FDSTORE=1\nFDNAME=memory"
        (received,) = array.array("i", rights[0][2])
        assert os.path.sameopenfile(received, file.fileno())
        os.close(received)


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "relative"])
def test_notifier_without_a_manager_sends_nothing(address: str | None) -> None:
    """Without a valid address nothing is sent, and no error is raised."""
    notifier = Notifier(address)
    assert not notifier.is_connected
    assert not notifier.send("READY=1")


def test_unreachable_manager_loses_the_message(tmp_path: Path) -> None:
    """A missing socket or a full queue loses the message and does not block."""
    assert not Notifier(f"{tmp_path}/none").send("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as busy:
        busy.bind(f"{tmp_path}/busy")
        notifier = Notifier(f"{tmp_path}/busy")
        sent = [notifier.send("STATUS=" + "x" * 1000) for _ in range(5000)]
    assert sent[0]
    assert not sent[-1]


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", None, 30.0),
        ("30000000", "own", 30.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_watchdog_timeout_is_read_from_the_environment(
    usec: str | None, pid: str | None, seconds: float | None
) -> None:
    """The timeout is used if the variables name this process."""
    pairs = {"WATCHDOG_USEC": usec, "WATCHDOG_PID": str(os.getpid()) if pid == "own" else pid}
    environment = {name: text for name, text in pairs.items() if text is not None}
    assert Notifier.from_environment(environment).watchdog_seconds == seconds


def test_manager_variables_are_removed_from_the_environment() -> None:
    """A trainer inherits no variable that lets it speak for the service."""
    environment = {
        "NOTIFY_SOCKET": "/run/notify",
        "WATCHDOG_USEC": "1",
        "WATCHDOG_PID": "1",
        "LISTEN_PID": "1",
        "LISTEN_FDS": "1",
        "LISTEN_FDNAMES": "x",
        "HOME": "/root",
    }
    notifier = Notifier.from_environment(environment)
    assert environment == {"HOME": "/root"}
    assert notifier.stored == {}  # the descriptors are for process 1
