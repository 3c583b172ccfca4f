"""The supervisor's socket: who may talk on it, and that nobody can disturb it."""

import asyncio
import contextlib
import json
import os
import resource
import socket
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ipc.messages import MAXIMUM_LINE_BYTES, Message
from orchestrator.ipc.server import MAXIMUM_PATH_BYTES, Channel, Peer, remove_abandoned
from tests.support import DEADLINE_SECONDS, NOBODY, in_child


class Supervisor:
    """Answers "ping", and remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self.channel = Channel(self._handle)
        self._news = asyncio.Event()

    async def _handle(self, peer: Peer, message: Message) -> None:
        self.heard.append(message)
        self._news.set()
        match message.get("type"):
            case "ping":
                peer.send({"type": "pong", "number": message.get("number")})
            case "page":
                with tempfile.TemporaryFile() as file:
                    file.write(b"the page")
                    file.flush()
                    peer.send({"type": "welcome"}, [file.fileno()])
            case "flood":
                for _ in range(1000):
                    peer.send({"type": "much", "text": "x" * 5000})

    async def has_heard(self, message: Message) -> None:
        while message not in self.heard:
            self._news.clear()
            await self._news.wait()

    async def connect(self) -> "Client":
        reader, writer = await asyncio.open_unix_connection(self.channel.path)
        return Client(reader, writer)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def ask(self, number: int) -> None:
        """Fails unless the supervisor answers."""
        await self.send(json.dumps({"type": "ping", "number": number}).encode() + b"\n")
        assert json.loads(await self._reader.readline()) == {"type": "pong", "number": number}

    async def is_dropped(self) -> bool:
        try:
            return await self._reader.read() == b""
        except ConnectionError:
            return True


def talk(scenario: Callable[[Supervisor], Awaitable[Any]]) -> Any:
    """Run a scenario against a channel, within the deadline."""

    async def run() -> Any:
        supervisor = Supervisor()
        supervisor.channel.start()
        try:
            return await asyncio.wait_for(scenario(supervisor), DEADLINE_SECONDS / 4)
        finally:
            supervisor.channel.close()

    return asyncio.run(run())


def test_each_client_gets_its_own_answers() -> None:
    """Two clients that talk in turn are not confused."""

    async def scenario(supervisor: Supervisor) -> None:
        clients = [await supervisor.connect() for _ in range(2)]
        for number in range(3):
            for client in clients:
                await client.ask(number)

    talk(scenario)


def test_messages_may_arrive_in_any_pieces() -> None:
    """A message in two pieces and two messages in one are each heard once, in order."""

    async def scenario(supervisor: Supervisor) -> None:
        client = await supervisor.connect()
        await client.send(b'{"a": 1}\n{"b"')
        await supervisor.has_heard({"a": 1})
        await client.send(b': 2}\n{"c": 3}\n')
        await supervisor.has_heard({"c": 3})
        assert supervisor.heard == [{"a": 1}, {"b": 2}, {"c": 3}]

    talk(scenario)


BROKEN = {
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "not UTF-8": b"\xff\xfe\xfd\n",
    "a list": b"[1]\n",
    "nested": b"[" * 100_000 + b"\n",
    "endless": b"x" * (MAXIMUM_LINE_BYTES + 100_000),
    "endless object": b'{"a": "' + b"x" * (MAXIMUM_LINE_BYTES + 100_000),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_client_is_dropped_and_disturbs_nobody(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Who does not speak the protocol is cut off and counts as lost; the others talk on."""

    async def scenario(supervisor: Supervisor) -> None:
        good, broken = await supervisor.connect(), await supervisor.connect()
        await good.ask(1)
        await broken.send(data)
        assert await broken.is_dropped()
        await supervisor.has_heard({"type": "lost"})
        await good.ask(2)
        await (await supervisor.connect()).ask(3)

    talk(scenario)
    assert not caplog.records, "the loop complains of an error that nobody handled"


def test_the_end_of_a_client_is_told_once() -> None:
    """A trainer that died is told from one that is silent."""

    async def scenario(supervisor: Supervisor) -> None:
        client, other = await supervisor.connect(), await supervisor.connect()
        await client.ask(1)
        assert {"type": "lost"} not in supervisor.heard
        client.writer.close()
        await supervisor.has_heard({"type": "lost"})
        await other.ask(2)
        assert supervisor.heard.count({"type": "lost"}) == 1

    talk(scenario)


def test_a_client_that_does_not_read_holds_nobody() -> None:
    """What it does not take is not waited for."""

    async def scenario(supervisor: Supervisor) -> None:
        deaf, other = await supervisor.connect(), await supervisor.connect()
        deaf.writer.transport.pause_reading()
        await deaf.send(b'{"type": "flood"}\n')
        await supervisor.has_heard({"type": "flood"})
        await other.ask(1)

    talk(scenario)


def test_a_client_that_leaves_at_once_is_no_error() -> None:
    """A port scanner, or a status that was interrupted, leaves no trace."""

    async def scenario(supervisor: Supervisor) -> None:
        for _ in range(20):
            (await supervisor.connect()).writer.transport.abort()
        await (await supervisor.connect()).ask(1)

    talk(scenario)


def test_descriptors_are_handed_over() -> None:
    """The page comes with the first message."""

    async def scenario(supervisor: Supervisor) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(supervisor.channel.path)
            client.sendall(b'{"type": "page"}\n')
            answer = await loop.run_in_executor(None, socket.recv_fds, client, 4096, 4)
        data, (descriptor,), _, _ = answer
        assert json.loads(data) == {"type": "welcome"}
        assert os.pread(descriptor, 100, 0) == b"the page"
        os.close(descriptor)

    talk(scenario)


def test_connections_are_accepted_again_after_descriptors_ran_out() -> None:
    """Too many open files refuse a client for a while, not every client from then on."""

    async def scenario(supervisor: Supervisor) -> None:
        await (await supervisor.connect()).ask(1)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            free = os.dup(client.fileno())
            os.close(free)
            client.connect(supervisor.channel.path)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            try:
                # The loop notices the client and cannot accept it.
                for _ in range(3):
                    await asyncio.sleep(0)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await (await supervisor.connect()).ask(2)

    talk(scenario)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.processes
def test_other_users_are_not_heard() -> None:
    """The directory keeps them out, and so do their credentials where it would not."""
    reader, writer = os.pipe()

    def connect_as_nobody(path: str) -> None:
        os.setuid(NOBODY)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            try:
                client.connect(path)
                client.sendall(b'{"type": "stop"}\n')
                client.settimeout(DEADLINE_SECONDS)
                os.write(writer, b"dropped" if client.recv(100) == b"" else b"heard")
            except PermissionError:
                os.write(writer, b"kept out")
            except ConnectionError:
                os.write(writer, b"dropped")

    async def scenario(supervisor: Supervisor) -> list[bytes]:
        answers, path = [], Path(supervisor.channel.path)
        for _ in range(2):
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, in_child, lambda: connect_as_nobody(str(path)))
            answers.append(os.read(reader, 100))
            path.parent.chmod(0o777)
            path.chmod(0o777)
        assert supervisor.heard == []
        return answers

    assert talk(scenario) == [b"kept out", b"dropped"]


@pytest.fixture
def _fresh_temporary_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes tempfile look at TMPDIR again."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)


def place_of_a_channel() -> Path:
    async def look(supervisor: Supervisor) -> Path:
        path = Path(supervisor.channel.path)
        await (await supervisor.connect()).ask(1)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert len(os.fsencode(path)) <= MAXIMUM_PATH_BYTES
        return path

    path: Path = talk(look)
    assert not path.parent.exists(), "the directory of the socket is left behind"
    return path.parent.parent


@pytest.mark.usefixtures("_fresh_temporary_directory")
@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "TMPDIR"])
def test_the_socket_lies_where_the_environment_says(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """The runtime directory of the user is taken first, else the temporary directory."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        monkeypatch.setenv(variable, directory)
        tempfile.tempdir = None
        assert place_of_a_channel() == Path(directory)


@pytest.mark.usefixtures("_fresh_temporary_directory")
@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "TMPDIR"])
def test_a_place_with_a_long_path_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A socket's path is short by nature: another directory is taken, and nothing left in it."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv(variable, str(long))
    tempfile.tempdir = None
    assert place_of_a_channel() not in (long, tmp_path)
    assert os.listdir(long) == []


@pytest.mark.usefixtures("_fresh_temporary_directory")
def test_a_place_that_is_not_there_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XDG_RUNTIME_DIR of a session that is gone does not keep a run from starting."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert place_of_a_channel() != tmp_path / "missing"


def test_only_an_abandoned_directory_of_ours_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note of a killed supervisor names a directory: it goes only if the name is ours."""
    # A note without a socket, taken for a path, would name the current directory.
    monkeypatch.chdir(tmp_path)
    ours, other = tmp_path / "orchestrator-abc", tmp_path / "precious"
    for directory in (ours, other):
        directory.mkdir()
        (directory / "socket").touch()
        remove_abandoned(str(directory / "socket"))
    remove_abandoned(None)
    assert not ours.exists()
    assert (other / "socket").exists()
