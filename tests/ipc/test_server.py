"""The supervisor's socket: who may connect, and that no client can disturb the others."""

import asyncio
import contextlib
import json
import os
import resource
import shutil
import socket
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ipc.invitation import accept_invitation
from orchestrator.ipc.messages import MAXIMUM_LINE_BYTES, Message
from orchestrator.ipc.server import MAXIMUM_CONNECTIONS, MessageServer, Peer
from orchestrator.ipc.socket_address import MAXIMUM_PATH_BYTES, make_socket_directory
from orchestrator.ipc.stale_sockets import remove_stale_sockets
from tests.support import DEADLINE_SECONDS, NOBODY, in_child, swapped_in


class Supervisor:
    """A server that answers "ping" and records the messages that it receives."""

    def __init__(self, first_message_seconds: float = 60.0) -> None:
        self.received: list[Message] = []
        self.server = MessageServer(self._handle, first_message_seconds=first_message_seconds)
        self._news = asyncio.Event()

    async def _handle(self, peer: Peer, message: Message) -> None:
        self.received.append(message)
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

    async def wait_for(self, message: Message) -> None:
        while message not in self.received:
            self._news.clear()
            await self._news.wait()

    async def connect(self) -> "Client":
        reader, writer = await asyncio.open_unix_connection(self.server.path)
        return Client(reader, writer)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def ping(self, number: int) -> None:
        """Send a ping, and fail unless the supervisor answers it."""
        await self.send(json.dumps({"type": "ping", "number": number}).encode() + b"\n")
        assert json.loads(await self._reader.readline()) == {"type": "pong", "number": number}

    async def read_line(self) -> bytes:
        return await self._reader.readline()

    async def is_dropped(self) -> bool:
        try:
            return await self._reader.read() == b""
        except ConnectionError:
            return True


def talk(
    scenario: Callable[[Supervisor], Awaitable[Any]], first_message_seconds: float = 60.0
) -> Any:
    """Run a scenario with a server, within the deadline."""

    async def run() -> Any:
        supervisor = Supervisor(first_message_seconds)
        supervisor.server.start()
        try:
            return await asyncio.wait_for(scenario(supervisor), DEADLINE_SECONDS / 4)
        finally:
            supervisor.server.close()

    return asyncio.run(run())


def test_each_client_gets_its_own_answers() -> None:
    """Two clients that send in turn each get the answers to their own messages."""

    async def scenario(supervisor: Supervisor) -> None:
        clients = [await supervisor.connect() for _ in range(2)]
        for number in range(3):
            for client in clients:
                await client.ping(number)

    talk(scenario)


def test_messages_in_pieces_are_received_in_order() -> None:
    """A message in two pieces and two messages in one piece are each received once, in order."""

    async def scenario(supervisor: Supervisor) -> None:
        client = await supervisor.connect()
        await client.send(b'{"type": "a"}\n{"type"')
        await supervisor.wait_for({"type": "a"})
        await client.send(b': "b"}\n{"type": "c"}\n')
        await supervisor.wait_for({"type": "c"})
        assert supervisor.received == [{"type": "a"}, {"type": "b"}, {"type": "c"}]

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
def test_client_that_breaks_the_protocol_is_dropped(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that breaks the protocol is disconnected and reported lost; others are served."""

    async def scenario(supervisor: Supervisor) -> None:
        good, broken = await supervisor.connect(), await supervisor.connect()
        await good.ping(1)
        await broken.send(data)
        assert await broken.is_dropped()
        await supervisor.wait_for({"type": "lost"})
        await good.ping(2)
        await (await supervisor.connect()).ping(3)

    talk(scenario)
    assert not caplog.records, "an error was not handled"


def test_disconnected_client_is_reported_lost_once() -> None:
    """The handler gets one ``lost`` message for a client that disconnects."""

    async def scenario(supervisor: Supervisor) -> None:
        client, other = await supervisor.connect(), await supervisor.connect()
        await client.ping(1)
        assert {"type": "lost"} not in supervisor.received
        client.writer.close()
        await supervisor.wait_for({"type": "lost"})
        await other.ping(2)
        assert supervisor.received.count({"type": "lost"}) == 1

    talk(scenario)


def test_client_that_does_not_read_does_not_block_others() -> None:
    """The server does not wait for a client that stops reading."""

    async def scenario(supervisor: Supervisor) -> None:
        deaf, other = await supervisor.connect(), await supervisor.connect()
        deaf.writer.transport.pause_reading()
        await deaf.send(b'{"type": "flood"}\n')
        await supervisor.wait_for({"type": "flood"})
        await other.ping(1)

    talk(scenario)


def test_client_that_disconnects_at_once_is_no_error() -> None:
    """Clients that disconnect without a message leave the server working."""

    async def scenario(supervisor: Supervisor) -> None:
        for _ in range(20):
            (await supervisor.connect()).writer.transport.abort()
        await (await supervisor.connect()).ping(1)

    talk(scenario)


def test_descriptors_are_sent_with_a_message() -> None:
    """A client receives a descriptor with the first message."""

    async def scenario(supervisor: Supervisor) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(supervisor.server.path)
            client.sendall(b'{"type": "page"}\n')
            answer = await loop.run_in_executor(None, socket.recv_fds, client, 4096, 4)
        data, (descriptor,), _, _ = answer
        assert json.loads(data) == {"type": "welcome"}
        assert os.pread(descriptor, 100, 0) == b"the page"
        os.close(descriptor)

    talk(scenario)


def test_connections_are_accepted_again_after_descriptors_run_out() -> None:
    """The server accepts clients again after it had too many open files."""

    async def scenario(supervisor: Supervisor) -> None:
        await (await supervisor.connect()).ping(1)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            free = os.dup(client.fileno())
            os.close(free)
            client.connect(supervisor.server.path)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            try:
                # The loop sees the client and cannot accept it.
                for _ in range(3):
                    await asyncio.sleep(0)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await (await supervisor.connect()).ping(2)

    talk(scenario)


@pytest.mark.usefixtures("as_root")
@pytest.mark.processes
def test_other_users_cannot_send_messages() -> None:
    """The directory's permissions keep other users out, and so does the credentials check."""
    reader, writer = os.pipe()

    def connect_as_nobody(path: str) -> None:
        os.setuid(NOBODY)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            try:
                client.connect(path)
                client.sendall(b'{"type": "stop"}\n')
                client.settimeout(DEADLINE_SECONDS)
                os.write(writer, b"dropped" if client.recv(100) == b"" else b"accepted")
            except PermissionError:
                os.write(writer, b"kept out")
            except ConnectionError:
                os.write(writer, b"dropped")

    async def scenario(supervisor: Supervisor) -> list[bytes]:
        answers, path = [], Path(supervisor.server.path)
        for _ in range(2):
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, in_child, lambda: connect_as_nobody(str(path)))
            answers.append(os.read(reader, 100))
            path.parent.chmod(0o777)
            path.chmod(0o777)
        assert supervisor.received == []
        return answers

    assert talk(scenario) == [b"kept out", b"dropped"]


@pytest.mark.parametrize("umask", [0, 0o077, 0o277])
def test_socket_is_private_from_the_beginning(tmp_path: Path, umask: int) -> None:
    """Whatever the umask is, only this user may connect."""

    async def scenario() -> int:
        before = os.umask(umask)
        server = MessageServer(_ignore, Path(directory))
        os.umask(before)
        try:
            return stat.S_IMODE(os.stat(server.path).st_mode)
        finally:
            server.close()

    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        assert asyncio.run(scenario()) == 0o600 & ~umask


def test_link_in_the_place_of_the_socket_changes_no_other_file() -> None:
    """Who may write to the run directory cannot have another file made private."""

    async def scenario(directory: Path) -> None:
        for _ in range(10):
            with contextlib.suppress(OSError):  # as when the socket is gone at once
                MessageServer(_ignore, directory).close()

    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory, precious = Path(name, "run"), Path(name, "precious")
        directory.mkdir()
        precious.touch(mode=0o644)

        def swap(new: Path) -> None:
            new.unlink()
            new.symlink_to(precious)

        with swapped_in(directory, swap) as slow:
            asyncio.run(scenario(slow))
        assert stat.S_IMODE(precious.stat().st_mode) == 0o644


async def _ignore(peer: Peer, message: Message) -> None:
    """Handle no message."""


@pytest.fixture
def _fresh_temporary_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tempfile read TMPDIR again."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)


def parent_of_socket_directory() -> Path:
    async def scenario(supervisor: Supervisor) -> Path:
        path = Path(supervisor.server.path)
        await (await supervisor.connect()).ping(1)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert len(os.fsencode(path)) <= MAXIMUM_PATH_BYTES
        return path

    path: Path = talk(scenario)
    assert not path.parent.exists(), "the directory of the socket still exists"
    return path.parent.parent


@pytest.mark.usefixtures("_fresh_temporary_directory")
@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "TMPDIR"])
def test_socket_is_created_where_the_environment_says(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """The socket is in XDG_RUNTIME_DIR, or else in the temporary directory."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        monkeypatch.setenv(variable, directory)
        tempfile.tempdir = None
        assert parent_of_socket_directory() == Path(directory)


@pytest.mark.usefixtures("_fresh_temporary_directory")
@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "TMPDIR"])
def test_directory_with_a_long_path_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A directory whose path is too long for a socket is skipped and left empty."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv(variable, str(long))
    tempfile.tempdir = None
    assert parent_of_socket_directory() not in (long, tmp_path)
    assert os.listdir(long) == []


@pytest.mark.usefixtures("_fresh_temporary_directory")
def test_missing_runtime_directory_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An XDG_RUNTIME_DIR that no longer exists does not prevent a run."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert parent_of_socket_directory() != tmp_path / "missing"


def test_only_a_stale_socket_directory_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a private directory with a name as this program makes it is removed."""
    # An empty path would name the current directory.
    monkeypatch.chdir(tmp_path)
    modes = {"orchestrator-0123abcd": 0o700, "precious": 0o700, "orchestrator-data": 0o700}
    modes |= {"orchestrator-11112222": 0o770, "orchestrator-33334444": 0o707}
    for name, mode in modes.items():
        directory = tmp_path / name
        directory.mkdir()
        directory.chmod(mode)
        with socket.socket(socket.AF_UNIX) as abandoned:
            abandoned.bind(str(directory / "socket"))
    (tmp_path / "orchestrator-55556666").symlink_to("precious")
    for path in ("orchestrator-55556666/socket", "orchestrator-0123abcd/socket"):
        remove_stale_sockets(tmp_path, path)
    for name in ("orchestrator-55556666", *list(modes)[1:]):
        remove_stale_sockets(tmp_path, str(tmp_path / name / "socket"))
    remove_stale_sockets(tmp_path, None)
    assert all((tmp_path / name / "socket").exists() for name in modes)
    remove_stale_sockets(tmp_path, str(tmp_path / "orchestrator-0123abcd/socket"))
    assert not (tmp_path / "orchestrator-0123abcd").exists()


@pytest.mark.parametrize("removed", ["socket", "directory", "parent"])
def test_removed_socket_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: str
) -> None:
    """A supervisor whose socket, directory or directory's parent was removed listens again."""
    parent = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(parent))

    async def scenario() -> None:
        supervisor = Supervisor()
        moved: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        supervisor.server.start(moved.set_result)
        path = Path(supervisor.server.path)
        if removed == "socket":
            path.unlink()
        else:
            shutil.rmtree(path.parent if removed == "directory" else parent)
        assert await asyncio.wait_for(moved, DEADLINE_SECONDS) == supervisor.server.path
        client = await supervisor.connect()
        await client.ping(1)
        client.writer.close()
        supervisor.server.close()
        assert not Path(supervisor.server.path).exists()

    asyncio.run(scenario())
    shutil.rmtree(parent, ignore_errors=True)


def test_path_is_announced_before_the_directory_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is told the path knows it even if the process is killed at once."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    announced: list[tuple[str, bool]] = []
    directory = make_socket_directory(
        lambda path: announced.append((path, Path(path).parent.exists()))
    )
    assert announced == [(str(directory / "socket"), False)]
    assert directory.stat().st_mode & 0o777 == 0o700


def test_socket_in_use_is_not_removed(tmp_path: Path) -> None:
    """A lock note cannot make this program remove another run's socket, a file or a link."""
    makers: dict[str, Callable[[Path], object]] = {
        "listened-on": lambda path: listener.bind(str(path)),
        "file": lambda path: path.touch(),
        "link": lambda path: path.symlink_to("/dev/null"),
    }
    for number, (name, make) in enumerate(makers.items()):
        directory = tmp_path / f"orchestrator-{number:08x}"
        directory.mkdir(0o700)
        with socket.socket(socket.AF_UNIX) as listener:
            make(directory / "socket")
            if name == "listened-on":
                listener.listen()
            remove_stale_sockets(tmp_path, str(directory / "socket"))
            assert os.path.lexists(directory / "socket"), name


def test_leaked_connections_do_not_lock_out_others() -> None:
    """Far more connections than allowed leave the trainer's and a new one working."""

    async def scenario(supervisor: Supervisor) -> None:
        trainer = await supervisor.connect()
        await trainer.send(b'{"type": "page"}\n')
        await trainer.read_line()
        leaked = [await supervisor.connect() for _ in range(3 * MAXIMUM_CONNECTIONS)]
        await (await supervisor.connect()).ping(1)
        assert await leaked[0].is_dropped()
        await trainer.ping(2)

    talk(scenario)


def test_invited_connection_is_kept() -> None:
    """A silent session that came by the invitation outlives the time and the number of others."""

    async def scenario(supervisor: Supervisor) -> None:
        connected = accept_invitation(supervisor.server.invitation.text, DEADLINE_SECONDS)
        assert connected is not None
        invited = Client(*await asyncio.open_unix_connection(sock=connected))
        silent = await supervisor.connect()
        assert await silent.is_dropped()
        for _ in range(2 * MAXIMUM_CONNECTIONS):
            await (await supervisor.connect()).ping(1)
        await invited.ping(2)

    talk(scenario, first_message_seconds=0.5)


def test_silent_connection_is_closed() -> None:
    """A client that sends nothing is disconnected; one that has sent something stays."""

    async def scenario(supervisor: Supervisor) -> None:
        speaking, silent = await supervisor.connect(), await supervisor.connect()
        await speaking.ping(1)
        assert await silent.is_dropped()
        await speaking.ping(2)

    talk(scenario, first_message_seconds=0.5)


def test_new_client_is_served_without_free_descriptors() -> None:
    """A client that comes when the limit of descriptors is reached takes a leaked one's place."""

    async def scenario(supervisor: Supervisor) -> None:
        leaked = [await supervisor.connect() for _ in range(4)]
        await leaked[-1].ping(0)
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        opened = []
        try:
            highest = max(map(int, os.listdir("/proc/self/fd")))
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 64, limits[1]))
            with contextlib.suppress(OSError):
                while True:
                    opened.append(os.open(os.devnull, os.O_RDONLY))
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, supervisor.server.path)
            await loop.sock_sendall(client, b'{"type": "ping", "number": 1}\n')
            assert await loop.sock_recv(client, 100)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for descriptor in opened:
                os.close(descriptor)
            client.close()

    talk(scenario)


WRONG = {
    "no type": b"{}",
    "a list as type": b'{"type": ["stop"]}',
    "a text as step": b'{"type": "snapshot", "step": "1"}',
    "a negative count": b'{"type": "ended", "status": -1}',
    "a bool as pid": b'{"type": "hello", "pid": true}',
    "an endless duration": b'{"type": "published", "seconds": Infinity}',
    "metrics in a list": b'{"type": "metrics", "metrics": [1]}',
    "a text among metrics": b'{"type": "metrics", "metrics": {"loss": "low"}}',
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG.keys())
def test_message_of_wrong_types_is_ignored(data: bytes) -> None:
    """A message whose values have the wrong types reaches no handler, and its client stays."""

    async def scenario(supervisor: Supervisor) -> None:
        client = await supervisor.connect()
        await client.send(data + b"\n")
        await client.ping(1)
        assert [message["type"] for message in supervisor.received] == ["ping"]

    talk(scenario)


def test_keys_of_the_journal_are_left_out() -> None:
    """What the journal says itself cannot be in a message, nor what is no identifier."""

    async def scenario(supervisor: Supervisor) -> None:
        client = await supervisor.connect()
        await client.send(
            b'{"type": "resumed", "event": "x", "attempt": 9, "time": 1, "self": 1, "a b": 1,'
            b' "": 1, "step": 7}\n'
        )
        await supervisor.wait_for({"type": "resumed", "step": 7})

    talk(scenario)
