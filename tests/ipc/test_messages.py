"""Messages over a Unix socket, and the descriptors that travel with them."""

import contextlib
import itertools
import json
import os
import socket
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
    peer_is_us,
    send_with_descriptors,
)
from tests.support import DEADLINE_SECONDS, NOBODY, in_child, wait_until

MESSAGES: list[Message] = [
    {"type": "hello", "attempt": "1"},
    {"text": "two\nlines\r\n\0 and ünïcode \u2028"},
    {},
    {"nested": {"list": [1, 2.5, None, True]}},
]


@given(st.lists(st.integers(0, 400), max_size=8))
def test_messages_come_out_as_they_went_in_however_they_are_cut(cuts: list[int]) -> None:
    """The stream may split a message anywhere and merge any two."""
    stream = b"".join(map(encode, MESSAGES))
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    buffer, received = LineBuffer(), []
    for start, end in itertools.pairwise(places):
        received += buffer.feed(stream[start:end])
    assert received == MESSAGES


def test_a_message_is_one_line() -> None:
    """A line break inside a message never ends it."""
    for message in MESSAGES:
        assert encode(message).count(b"\n") == 1


def test_values_that_json_does_not_know_travel_as_text() -> None:
    """A path in a message does not make sending it fail."""
    assert json.loads(encode({"path": Path("runs/a")})) == {"path": "runs/a"}


@pytest.mark.parametrize(
    "line",
    [b"hello", b"[1, 2]", b"7", b"null", b'"text"', b"\xff\xfe", b"{'a': 1}", b"", b"[" * 100_000],
    ids=lambda line: repr(line[:12]),
)
def test_what_is_no_message_is_refused(line: bytes) -> None:
    """Anything but a line with a JSON object raises ValueError, nothing else."""
    with pytest.raises(ValueError, match=r".*"):
        LineBuffer().feed(line + b"\n")


def test_a_message_without_end_is_refused() -> None:
    """A sender that never ends its line cannot fill our memory."""
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
    """A connection of the trainer, and the supervisor's end of it."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        connection = Connection(path, DEADLINE_SECONDS)
        ours, _ = listener.accept()
        with ours:
            yield connection, ours
        connection.close()


def test_both_directions(pair: tuple[Connection, socket.socket]) -> None:
    """What either side sends arrives at the other."""
    connection, ours = pair
    connection.send({"type": "hello"})
    assert json.loads(ours.recv(4096)) == {"type": "hello"}
    ours.sendall(encode({"a": 1}) + encode({"b": 2}) + b'{"c"')
    assert [connection.receive(), connection.receive()] == [{"a": 1}, {"b": 2}]
    ours.sendall(b": 3}\n")
    assert connection.receive() == {"c": 3}


def test_the_end_of_the_other_side_is_seen(pair: tuple[Connection, socket.socket]) -> None:
    """After the last message the end of file is told as None."""
    connection, ours = pair
    ours.sendall(encode({"last": True}))
    ours.close()
    assert connection.receive() == {"last": True}
    assert connection.receive() is None
    with pytest.raises(OSError, match=r".*"):
        connection.send({"type": "hello"})


def test_waiting_is_bounded(pair: tuple[Connection, socket.socket]) -> None:
    """A supervisor that does not answer is given up after the timeout."""
    connection, _ = pair
    connection.set_timeout(0.01)
    with pytest.raises(TimeoutError):
        connection.receive()


def test_end_wakes_a_thread_that_waits(pair: tuple[Connection, socket.socket]) -> None:
    """A session that leaves is not held by its listening thread."""
    connection, ours = pair
    connection.set_timeout(None)
    answers: list[Any] = []
    begun = threading.Event()

    def listen() -> None:
        answers.append(connection.receive())
        begun.set()
        # It may be just about to wait instead of waiting: then it is told by an error.
        with contextlib.suppress(OSError):
            answers.append(connection.receive())

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    ours.sendall(encode({}))
    assert begun.wait(DEADLINE_SECONDS)
    # Linux tells in which function of the kernel a thread sleeps.
    place = Path(f"/proc/self/task/{thread.native_id}/wchan")
    if place.exists():
        wait_until(lambda: "stream" in place.read_text(), "the thread to wait")
    connection.end()
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    assert answers in ([{}, None], [{}])


def test_nobody_listens(tmp_path: Path) -> None:
    """Connecting to a supervisor that is gone raises OSError."""
    for name in ("missing", "not-a-socket"):
        (tmp_path / "not-a-socket").touch()
        with pytest.raises(OSError, match=r".*"):
            Connection(str(tmp_path / name), DEADLINE_SECONDS)


def test_descriptors_travel_with_the_first_message(
    pair: tuple[Connection, socket.socket], tmp_path: Path
) -> None:
    """The receiver gets the same open files, in order, and does not hand them on to children."""
    connection, ours = pair
    files = [open(tmp_path / name, "w+b", buffering=0) for name in "ab"]  # noqa: SIM115
    send_with_descriptors(ours, {"type": "welcome"}, [file.fileno() for file in files])
    ours.sendall(encode({"type": "stop"}))
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


def test_a_first_message_in_pieces_keeps_its_descriptors(
    pair: tuple[Connection, socket.socket], tmp_path: Path
) -> None:
    """The descriptors come with the first piece, and the message when it is whole."""
    connection, ours = pair
    with open(tmp_path / "page", "wb") as page:
        socket.send_fds(ours, [b'{"type": '], [page.fileno()])
    timer = threading.Timer(0.02, ours.sendall, [b'"welcome"}\n'])
    timer.start()
    message, descriptors = connection.receive_with_descriptors()
    timer.join()
    assert message == {"type": "welcome"}
    assert len(descriptors) == 1
    os.close(descriptors[0])


def test_a_supervisor_that_ends_before_its_welcome(
    pair: tuple[Connection, socket.socket],
) -> None:
    """No message and no descriptors are told apart from an error."""
    connection, ours = pair
    ours.close()
    assert connection.receive_with_descriptors() == (None, [])


def test_closing_leaves_the_connection_of_other_processes(
    pair: tuple[Connection, socket.socket],
) -> None:
    """A forked child that closes its descriptor does not end its parent's connection."""
    connection, ours = pair
    in_child(connection.close)
    ours.sendall(encode({"still": "here"}))
    assert connection.receive() == {"still": "here"}


def test_our_own_processes_are_recognised(pair: tuple[Connection, socket.socket]) -> None:
    """A process of the same user may connect."""
    _, ours = pair
    assert peer_is_us(ours)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_processes_of_others_are_recognised(tmp_path: Path) -> None:
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
    theirs, _ = listener.accept()
    with listener, theirs:
        assert not peer_is_us(theirs)
