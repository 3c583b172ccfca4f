"""Messages over a Unix socket, and descriptors that are sent with them."""

import contextlib
import itertools
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ipc.messages import (
    MAXIMUM_LINE_BYTES,
    Connection,
    LineBuffer,
    Message,
    encode,
    peer_is_same_user,
    send_with_descriptors,
)
from tests.support import DEADLINE_SECONDS, NOBODY, in_child, wait_until

MESSAGES: list[Message] = [
    {"type": "hello", "attempt": "1"},
    {"text": "two\nlines\r\n and ünïcode \u2028"},
    {},
    {"nested": {"list": [1, 2.5, None, True]}},
]


@given(st.lists(st.integers(0, 400), max_size=8))
def test_messages_survive_any_split_of_the_stream(cuts: list[int]) -> None:
    """The stream may split a message at any byte, and join any two messages."""
    stream = b"".join(map(encode, MESSAGES))
    offsets = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    buffer, received = LineBuffer(), []
    for start, end in itertools.pairwise(offsets):
        received += buffer.feed(stream[start:end])
    assert received == MESSAGES


def test_message_is_one_line() -> None:
    """A line break in a message does not end its line."""
    for message in MESSAGES:
        assert encode(message).count(b"\n") == 1


def test_other_values_are_sent_as_text() -> None:
    """A value that JSON does not support, such as a path, is sent as text."""
    assert json.loads(encode({"path": Path("runs/a")})) == {"path": "runs/a"}


@pytest.mark.parametrize(
    "line",
    [b"hello", b"[1, 2]", b"7", b"null", b'"text"', b"\xff\xfe", b"{'a': 1}", b"", b"[" * 100_000],
    ids=lambda line: repr(line[:12]),
)
def test_invalid_message_is_refused(line: bytes) -> None:
    """A line that is not a JSON object raises ValueError."""
    with pytest.raises(ValueError, match=r".*"):
        LineBuffer().feed(line + b"\n")


def test_endless_message_is_refused() -> None:
    """A sender that never ends its line cannot fill the memory."""
    buffer, sent = LineBuffer(), 0

    def flood() -> None:
        nonlocal sent
        while sent < 10 * MAXIMUM_LINE_BYTES:
            buffer.feed(b"x" * 65536)
            sent += 65536

    with pytest.raises(ValueError, match="too long"):
        flood()
    assert sent <= MAXIMUM_LINE_BYTES


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Connection, socket.socket]]:
    """Yield a trainer's connection and the supervisor's end of it."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        connection = Connection(path, DEADLINE_SECONDS)
        supervisor_end, _ = listener.accept()
        with supervisor_end:
            yield connection, supervisor_end
        connection.close()


def test_messages_travel_in_both_directions(pair: tuple[Connection, socket.socket]) -> None:
    """Each end receives what the other one sends."""
    connection, supervisor_end = pair
    connection.send({"type": "hello"})
    assert json.loads(supervisor_end.recv(4096)) == {"type": "hello"}
    supervisor_end.sendall(encode({"a": 1}) + encode({"b": 2}) + b'{"c"')
    assert [connection.receive(), connection.receive()] == [{"a": 1}, {"b": 2}]
    supervisor_end.sendall(b": 3}\n")
    assert connection.receive() == {"c": 3}


def test_closed_peer_ends_the_stream(pair: tuple[Connection, socket.socket]) -> None:
    """After the last message receive() returns None, and send() raises OSError."""
    connection, supervisor_end = pair
    supervisor_end.sendall(encode({"last": True}))
    supervisor_end.close()
    assert connection.receive() == {"last": True}
    assert connection.receive() is None
    with pytest.raises(OSError, match=r".*"):
        connection.send({"type": "hello"})


def test_receive_times_out(pair: tuple[Connection, socket.socket]) -> None:
    """receive() raises TimeoutError when no message arrives in time."""
    connection, _ = pair
    connection.set_timeout(0.01)
    with pytest.raises(TimeoutError):
        connection.receive()


def test_shut_down_wakes_a_waiting_thread(pair: tuple[Connection, socket.socket]) -> None:
    """A thread that waits in receive() returns when the connection is shut down."""
    connection, supervisor_end = pair
    connection.set_timeout(None)
    answers: list[Any] = []
    begun = threading.Event()

    def listen() -> None:
        answers.append(connection.receive())
        begun.set()
        # If the thread does not wait yet, receive() raises instead.
        with contextlib.suppress(OSError):
            answers.append(connection.receive())

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    supervisor_end.sendall(encode({}))
    assert begun.wait(DEADLINE_SECONDS)
    # On Linux this file names the kernel function in which a thread sleeps.
    wait_file = Path(f"/proc/self/task/{thread.native_id}/wchan")
    if wait_file.exists():
        wait_until(lambda: "stream" in wait_file.read_text(), "the thread to wait")
    connection.shut_down()
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    assert answers in ([{}, None], [{}])


def test_connecting_to_a_missing_server_raises(tmp_path: Path) -> None:
    """Connecting to a path on which no process listens raises OSError."""
    for name in ("missing", "not-a-socket"):
        (tmp_path / "not-a-socket").touch()
        with pytest.raises(OSError, match=r".*"):
            Connection(str(tmp_path / name), DEADLINE_SECONDS)


def test_descriptors_arrive_with_the_first_message(
    pair: tuple[Connection, socket.socket], tmp_path: Path
) -> None:
    """The receiver gets the open files in order, and its children do not inherit them."""
    connection, supervisor_end = pair
    files = [open(tmp_path / name, "w+b", buffering=0) for name in "ab"]  # noqa: SIM115
    send_with_descriptors(supervisor_end, {"type": "welcome"}, [file.fileno() for file in files])
    supervisor_end.sendall(encode({"type": "stop"}))
    message, descriptors = connection.receive_with_descriptors()
    assert message == {"type": "welcome"}
    assert connection.receive() == {"type": "stop"}
    assert len(descriptors) == 2
    for file, descriptor in zip(files, descriptors, strict=True):
        assert not os.get_inheritable(descriptor)
        os.write(descriptor, b"by the trainer")
        file.seek(0)
        assert file.read() == b"by the trainer"
        os.close(descriptor)
        file.close()


def test_split_first_message_keeps_its_descriptors(
    pair: tuple[Connection, socket.socket], tmp_path: Path
) -> None:
    """Descriptors that arrive with the first piece of a message are returned with the message."""
    connection, supervisor_end = pair
    with open(tmp_path / "page", "wb") as page:
        socket.send_fds(supervisor_end, [b'{"type": '], [page.fileno()])
    timer = threading.Timer(0.02, supervisor_end.sendall, [b'"welcome"}\n'])
    timer.start()
    message, descriptors = connection.receive_with_descriptors()
    timer.join()
    assert message == {"type": "welcome"}
    assert len(descriptors) == 1
    os.close(descriptors[0])


def test_supervisor_that_ends_before_its_welcome_sends_no_message(
    pair: tuple[Connection, socket.socket],
) -> None:
    """A connection that ends before the first message gives no message and no descriptors."""
    connection, supervisor_end = pair
    supervisor_end.close()
    assert connection.receive_with_descriptors() == (None, [])


def test_close_keeps_the_connection_of_other_processes(
    pair: tuple[Connection, socket.socket],
) -> None:
    """A forked child that closes its descriptor does not end the parent's connection."""
    connection, supervisor_end = pair
    in_child(connection.close)
    supervisor_end.sendall(encode({"still": "here"}))
    assert connection.receive() == {"still": "here"}


def test_process_of_the_same_user_is_accepted(pair: tuple[Connection, socket.socket]) -> None:
    """A process of the same user may connect."""
    _, supervisor_end = pair
    assert peer_is_same_user(supervisor_end)


@pytest.mark.usefixtures("as_root")
def test_process_of_another_user_is_rejected(tmp_path: Path) -> None:
    """A process of another user may not connect."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # An abstract name, which no permission of a directory protects.
    listener.bind(f"\0orchestrator-test-{os.getpid()}")
    listener.listen()

    def connect() -> None:
        os.setuid(NOBODY)
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(listener.getsockname())

    in_child(connect)
    client_end, _ = listener.accept()
    with listener, client_end:
        assert not peer_is_same_user(client_end)


def test_text_that_nothing_can_store_is_escaped() -> None:
    """A NUL and a lone surrogate in a message arrive as escapes, in keys and lists too."""
    [message] = LineBuffer().feed(b'{"a\\u0000": ["\\ud800", {"b": "\\udfff\\u0000"}]}\n')
    assert message == {"a\\x00": ["\\ud800", {"b": "\\udfff\\x00"}]}


def test_slow_answer_meets_the_deadline(tmp_path: Path) -> None:
    """A peer that sends a byte at a time does not hold a client beyond its timeout."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    over = threading.Event()

    def dribble() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            while not over.wait(0.05):
                connection.send(b" ")

    thread = threading.Thread(target=dribble)
    thread.start()
    connection = Connection(str(tmp_path / "socket"), 0.5)
    try:
        with pytest.raises(TimeoutError):
            connection.receive()
    finally:
        over.set()
        connection.close()
        thread.join()
        listener.close()


@pytest.mark.usefixtures("as_root")
def test_client_refuses_the_socket_of_another_user() -> None:
    """A client does not talk to a listener of another user, whatever file named the path."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        path = os.path.join(directory, "socket")
        listener.bind(path)
        os.chmod(directory, 0o755)
        os.chmod(path, 0o777)
        os.seteuid(NOBODY)  # the kernel notes who listens
        try:
            listener.listen()
        finally:
            os.seteuid(0)

        def connect() -> None:
            os.setuid(NOBODY - 1)
            with pytest.raises(PermissionError, match="belongs to another user"):
                Connection(path, DEADLINE_SECONDS)

        in_child(connect)
