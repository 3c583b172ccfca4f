"""The place of the socket: another user who may change it there gains nothing."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.ipc import stale_sockets
from orchestrator.ipc.invitation import Invitation
from orchestrator.ipc.socket_address import SocketAddress, ignore
from orchestrator.ipc.stale_sockets import remove_stale_sockets
from tests.support import NOBODY


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a short path, in which the socket's own directory is made."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(name)


def swap(directory: Path, other: Path) -> None:
    """Put a link to another directory in the place of one, as the owner of what is above can."""
    directory.rename(directory.with_name("moved"))
    directory.symlink_to(other)


@pytest.mark.parametrize("mode", [0o700, 0o775, 0o1777])
def test_socket_is_in_a_directory_that_only_this_user_can_change(place: Path, mode: int) -> None:
    """XDG_RUNTIME_DIR counts where nobody can rename what this user makes there."""
    place.chmod(mode)
    address = SocketAddress(None, ignore)
    address.close()
    assert Path(address.path).parent.parent == place


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "TMPDIR"])
@pytest.mark.parametrize(("owner", "mode"), [(NOBODY, 0o700), (NOBODY, 0o1777), (0, 0o777)])
def test_directory_that_another_user_can_change_is_not_used(
    place: Path, monkeypatch: pytest.MonkeyPatch, variable: str, owner: int, mode: int
) -> None:
    """Variables of another user's session, which su keeps, do not choose root's place."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv(variable, str(place))
    os.chown(place, owner, owner)
    place.chmod(mode)
    address = SocketAddress(None, ignore)
    address.close()
    assert not Path(address.path).is_relative_to(place)
    assert os.listdir(place) == []


def test_what_takes_the_place_of_the_directory_is_neither_touched_nor_removed(
    place: Path, tmp_path: Path
) -> None:
    """Times are set and the socket is removed in the directory that was opened."""
    precious = tmp_path / "other" / "socket"
    precious.parent.mkdir()
    precious.write_text("precious")
    for path in (precious, precious.parent):
        os.utime(path, (1, 1))
    address = SocketAddress(None, ignore)
    directory = Path(address.path).parent
    swap(directory, precious.parent)
    assert not address.is_there()
    address.close()
    assert precious.read_text() == "precious"
    assert [p.stat().st_mtime for p in (precious, precious.parent)] == [1, 1]
    assert os.listdir(place / "moved") == []
    assert directory.is_symlink()


def test_link_in_the_place_of_the_socket_leads_to_no_other_file(
    place: Path, tmp_path: Path
) -> None:
    """A file that a link names keeps its times, and the link, which is another's, stays."""
    precious = tmp_path / "precious"
    precious.touch()
    os.utime(precious, (1, 1))
    address = SocketAddress(None, ignore)
    os.unlink(address.path)
    os.symlink(precious, address.path)
    assert not address.is_there()
    address.close()
    assert precious.stat().st_mtime == 1
    assert os.path.islink(address.path)


def test_stale_socket_is_removed_in_the_directory_that_was_looked_at(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes the place of the directory meanwhile keeps its socket."""
    private, other = place / "orchestrator-0123abcd", tmp_path / "other"
    for directory in (private, other):
        directory.mkdir(0o700)
        with monkeypatch.context() as context, socket.socket(socket.AF_UNIX) as abandoned:
            context.chdir(directory)
            abandoned.bind("socket")
    is_listened_on = stale_sockets._is_listened_on

    def swap_meanwhile(path: Path) -> bool:
        answer = is_listened_on(path)
        swap(private, other)
        return answer

    monkeypatch.setattr(stale_sockets, "_is_listened_on", swap_meanwhile)
    remove_stale_sockets(tmp_path, str(private / "socket"))
    assert os.listdir(other) == ["socket"]
    assert os.listdir(place / "moved") == []


def test_descriptor_that_is_no_socket_is_closed() -> None:
    """A process of the training cannot use up the supervisor's descriptors."""
    invitation = Invitation()
    with (
        socket.socket(fileno=os.dup(invitation.descriptor)) as sender,
        open(os.devnull, "rb") as file,
    ):
        before = sorted(os.listdir("/proc/self/fd"))
        for _ in range(5):
            socket.send_fds(sender, [b"c"], [file.fileno()])
            assert invitation.receive() is None
        assert sorted(os.listdir("/proc/self/fd")) == before
        own_end, other_end = socket.socketpair()
        with own_end, other_end:
            socket.send_fds(sender, [b"c"], [other_end.fileno()])
            connection = invitation.receive()
        assert connection is not None
        connection.close()
    invitation.close()
