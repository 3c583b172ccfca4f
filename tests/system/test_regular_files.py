"""Files below directories that others may write to: no link, FIFO or device is opened."""

import errno
import os
import socket
from pathlib import Path

import pytest

from orchestrator.system import regular_files
from orchestrator.system.durable import append_lines
from orchestrator.system.regular_files import open_regular, read_regular
from tests.system.opens import not_opened


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file outside, to which links lead."""
    file = tmp_path / "precious"
    file.write_text("precious\n")
    return file


def replace_by(kind: str, path: Path, precious: Path) -> None:
    match kind:
        case "link":
            path.symlink_to(precious)
        case "dangling link":
            path.symlink_to(precious.with_name("new"))
        case "FIFO":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
        case "directory":
            path.mkdir()


@pytest.fixture(params=["by its inode", "without /proc", "without O_PATH"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a file is opened after a look at it, which differs between systems."""
    if request.param == "without /proc":
        monkeypatch.setattr(regular_files, "_OWN_DESCRIPTORS", "/missing")
    elif request.param == "without O_PATH":
        monkeypatch.setattr(regular_files, "_O_PATH", 0)
    return str(request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", ["link", "dangling link", "FIFO", "device", "socket", "directory"])
def test_only_regular_files_are_opened(tmp_path: Path, precious: Path, kind: str) -> None:
    """Nothing else is read, appended to, truncated or created, and no open blocks."""
    path = tmp_path / "file"
    replace_by(kind, path, precious)
    for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC):
        with pytest.raises(OSError, match=r"link|not a regular file|Is a directory"):
            open_regular(path, flags)
    with pytest.raises(OSError, match=r"link|not a regular file|Is a directory"):
        append_lines(path, b"line\n")
    assert precious.read_text() == "precious\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("way")
def test_file_is_created_read_appended_to_and_truncated(tmp_path: Path) -> None:
    """Each open does what os.open would do with a regular file, also behind a link if it may."""
    path = tmp_path / "file"
    for flags, expected in (
        (os.O_WRONLY | os.O_CREAT | os.O_APPEND, b"a"),
        (os.O_WRONLY | os.O_CREAT | os.O_APPEND, b"aa"),
        (os.O_WRONLY | os.O_CREAT | os.O_TRUNC, b"a"),
    ):
        with open(open_regular(path, flags), "ab") as file:
            file.write(b"a")
        assert read_regular(path, 10) == expected
    (tmp_path / "link").symlink_to(path)
    assert read_regular(tmp_path / "link", 10, follow_link=True) == b"a"
    with pytest.raises(FileNotFoundError, match="missing") as caught:
        open_regular(tmp_path / "missing", os.O_RDONLY)
    assert caught.value.filename == str(tmp_path / "missing")


def test_file_that_another_process_makes_meanwhile_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two processes that create a log, both write to the same file."""
    path, real = tmp_path / "log", os.open

    def open_late(name: str, flags: int, *rest: int, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT and not path.exists():
            path.write_bytes(b"first\n")
        return real(name, flags, *rest, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", open_late)
    assert append_lines(path, b"second\n")
    assert path.read_bytes() == b"first\nsecond\n"


@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="only Linux names a file unopened")
@pytest.mark.parametrize("through", ["its name", "a link"])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_RDWR | os.O_CREAT])
def test_fifo_is_not_even_opened(tmp_path: Path, through: str, flags: int) -> None:
    """A process that writes to a FIFO would be ended when this one closes it."""
    fifo, path = tmp_path / "fifo", tmp_path / "fifo"
    os.mkfifo(fifo)
    if through == "a link":
        path = tmp_path / "link"
        path.symlink_to(fifo)
    with not_opened(fifo), pytest.raises(OSError, match="not a regular file"):
        open_regular(path, flags, follow_link=True)


@pytest.mark.parametrize("linked", ["attempts", "attempts/0001"])
def test_directories_above_may_not_be_links(tmp_path: Path, precious: Path, linked: str) -> None:
    """A link in the place of a directory below the run directory leads nowhere."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "0001").mkdir(parents=True)
    run = tmp_path / "run"
    (run / linked).parent.mkdir(parents=True)
    (run / linked).symlink_to(elsewhere if linked == "attempts" else elsewhere / "0001")
    with pytest.raises(OSError, match="a link or a file|symbolic link") as caught:
        open_regular(run / "attempts/0001/output.log", os.O_WRONLY | os.O_CREAT, real_parents=2)
    assert caught.value.errno in (errno.ENOTDIR, errno.ELOOP)
    assert not (elsewhere / "0001/output.log").exists()


def test_the_directory_at_the_top_may_be_a_link(tmp_path: Path) -> None:
    """A run directory itself may be reached through a link, by a relative path too."""
    (tmp_path / "disk/attempts/0001").mkdir(parents=True)
    (tmp_path / "run").symlink_to("disk")
    file = tmp_path / "run/attempts/0001/output.log"
    os.close(open_regular(file, os.O_WRONLY | os.O_CREAT, real_parents=2))
    assert read_regular(file, 10, real_parents=2) == b""


def test_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    """A sparse file of a terabyte is refused before it fills the memory."""
    with open(tmp_path / "file", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="more than 100 bytes"):
        read_regular(tmp_path / "file", 100)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_new_file_follows_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    """A new file has the permissions that the umask leaves, for a group too."""
    before = os.umask(umask)
    try:
        append_lines(tmp_path / "file", b"line\n")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode
