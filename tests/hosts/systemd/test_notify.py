"""What is said to a service manager, heard on a real socket."""

import array
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.hosts.systemd.notify import Notifier


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A manager's address, as it stands in the environment, and its socket."""
    name = f"{tmp_path}/notify" if request.param == "file" else f"@orchestrator-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0", 1))
        listening.settimeout(5)
        yield name, listening


def test_words_arrive(manager: tuple[str, socket.socket]) -> None:
    """A message is one datagram of lines, to a path as to an abstract name."""
    address, listening = manager
    assert Notifier(address).send("READY=1", "STATUS=well")
    assert listening.recv(4096) == b"READY=1\nSTATUS=well"


def test_descriptors_arrive(manager: tuple[str, socket.socket], tmp_path: Path) -> None:
    """What is to be kept comes with its name, as the same file."""
    address, listening = manager
    with (tmp_path / "kept").open("w") as file:
        Notifier(address).store("memory", file.fileno())
        text, rights, _, _ = listening.recvmsg(4096, 4096)
        assert text == b"FDSTORE=1\nFDNAME=memory"
        (received,) = array.array("i", rights[0][2])
        assert os.path.sameopenfile(received, file.fileno())
        os.close(received)


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "relative"])
def test_nobody_is_told_where_there_is_no_manager(address: str | None) -> None:
    """Without an address that we know there is nothing to say, and no error."""
    notifier = Notifier(address)
    assert not notifier.is_heard
    assert not notifier.send("READY=1")


def test_a_manager_that_is_away_holds_up_nobody(tmp_path: Path) -> None:
    """A socket that is gone, or whose queue is full, costs the message."""
    assert not Notifier(f"{tmp_path}/none").send("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(f"{tmp_path}/deaf")
        notifier = Notifier(f"{tmp_path}/deaf")
        sent = [notifier.send("STATUS=" + "x" * 1000) for _ in range(5000)]
    assert sent[0]
    assert not sent[-1]


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", None, 30.0),
        ("30000000", "ours", 30.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_watchdog(usec: str | None, pid: str | None, seconds: float | None) -> None:
    """Signs of health are wanted where the variables say so, and of this process."""
    pairs = {"WATCHDOG_USEC": usec, "WATCHDOG_PID": str(os.getpid()) if pid == "ours" else pid}
    environment = {name: text for name, text in pairs.items() if text is not None}
    assert Notifier.take(environment).watchdog_seconds == seconds


def test_a_trainer_finds_nothing_of_the_manager() -> None:
    """Everything that would let it speak for the service is taken out of the environment."""
    environment = {
        "NOTIFY_SOCKET": "/run/notify",
        "WATCHDOG_USEC": "1",
        "WATCHDOG_PID": "1",
        "LISTEN_PID": "1",
        "LISTEN_FDS": "1",
        "LISTEN_FDNAMES": "x",
        "HOME": "/root",
    }
    notifier = Notifier.take(environment)
    assert environment == {"HOME": "/root"}
    assert notifier.stored == {}  # they are for process 1
