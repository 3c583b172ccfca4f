"""Durable replacement of small files, and each operation of Disk."""

import errno
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from orchestrator.system.durable import (
    Disk,
    remove_temporaries,
    remove_tree,
    replace_file,
    write_json,
)
from tests.support import DIED, FailingDisk, die, in_child

OLD, NEW = {"number": 1}, {"number": 2}
# create, write, sync, rename, sync_directory
OPERATIONS = 5


def test_written_json_is_read_back(tmp_path: Path) -> None:
    """A written file contains what was written last, and no other file is left."""
    write_json(tmp_path / "run.json", OLD)
    write_json(tmp_path / "run.json", NEW)
    assert json.loads((tmp_path / "run.json").read_bytes()) == NEW
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("number", range(1, OPERATIONS + 1))
def test_failed_replacement_leaves_the_old_or_the_new_file(tmp_path: Path, number: int) -> None:
    """When any operation fails, the error is raised and the old or the new file is complete."""
    file = tmp_path / "run.json"
    write_json(file, OLD)
    with pytest.raises(OSError, match="No space left"):
        write_json(file, NEW, FailingDisk(number))
    assert json.loads(file.read_bytes()) == (NEW if number == OPERATIONS else OLD)
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.processes
def test_killed_replacement_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    """A process that dies at any operation leaves the old or the new file complete."""
    file = tmp_path / "run.json"
    for number in itertools.count(1):
        write_json(file, OLD)
        status = in_child(lambda: write_json(file, NEW, FailingDisk(number, die)))  # noqa: B023
        assert json.loads(file.read_bytes()) in (OLD, NEW)
        if status == 0:
            break
        assert status == DIED
    assert number == OPERATIONS + 1
    assert json.loads(file.read_bytes()) == NEW


def test_replacement_is_synced_before_it_is_renamed(tmp_path: Path) -> None:
    """The bytes are synced before the rename, and the directory before the call returns."""
    log = tmp_path / "log"
    write_json(tmp_path / "run.json", OLD, FailingDisk(log=log))
    operations = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert [name for name, *_ in operations] == [
        "create",
        "write",
        "sync",
        "rename",
        "sync_directory",
    ]
    assert operations[-1] == ["sync_directory", str(tmp_path)]


def test_creation_never_replaces_an_existing_file_or_directory(tmp_path: Path) -> None:
    """Creating a file or a directory that exists is refused, and its content stays."""
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        Disk().create(tmp_path / "file")
    with pytest.raises(FileExistsError):
        Disk().make_directory(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"precious"


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_only_regular_files_are_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A directory or a pipe with the file's name stays as it is."""
    make(tmp_path / "there")
    before = os.lstat(tmp_path / "there")
    with pytest.raises(FileExistsError, match="not a regular file"):
        replace_file(tmp_path / "there", b"content")
    assert os.lstat(tmp_path / "there") == before
    assert os.listdir(tmp_path) == ["there"]


def put_link(path: Path, precious: Path) -> None:
    path.unlink()
    path.symlink_to(precious)


def put_file(path: Path, precious: Path) -> None:
    path.unlink()
    path.write_bytes(b"another")


@pytest.mark.parametrize("put", [put_link, put_file])
def test_what_takes_the_place_of_a_temporary_file_is_not_published(
    tmp_path: Path, put: Callable[[Path, Path], None]
) -> None:
    """In the directory of a group, another member can put a link where this user writes."""
    precious, target = tmp_path / "precious", tmp_path / "shared" / "file"
    precious.write_bytes(b"precious")
    target.parent.mkdir()
    target.write_bytes(b"old")

    class SwappedDisk(Disk):
        def sync(self, file: BinaryIO) -> None:
            super().sync(file)
            (temporary,) = target.parent.glob(".file.*")
            put(temporary, precious)

    with pytest.raises(OSError, match="another file has taken its place"):
        replace_file(target, b"new", SwappedDisk())
    assert target.read_bytes() == b"old"
    assert precious.read_bytes() == b"precious"
    assert os.listdir(target.parent) == ["file"]


def test_sync_writes_buffered_bytes(tmp_path: Path) -> None:
    """After a sync another reader sees all bytes, although the file is still open."""
    disk = Disk()
    with disk.create(tmp_path / "file") as file:
        file.write(b"bytes")
        disk.sync(file)
        assert (tmp_path / "file").read_bytes() == b"bytes"


def test_remove_deletes_files_links_and_empty_directories(tmp_path: Path) -> None:
    """A link is removed and not its target; a directory that is not empty stays."""
    directory, file, link = tmp_path / "directory", tmp_path / "file", tmp_path / "link"
    directory.mkdir()
    file.touch()
    link.symlink_to(directory, target_is_directory=True)
    Disk().remove(link)
    assert directory.is_dir()
    (directory / "content").touch()
    with pytest.raises(OSError, match="not empty") as caught:
        Disk().remove(directory)
    assert caught.value.errno == errno.ENOTEMPTY
    for path in (directory / "content", directory, file):
        Disk().remove(path)
    assert not os.listdir(tmp_path)


def test_sync_of_a_missing_directory_or_a_file_is_refused(tmp_path: Path) -> None:
    """A sync of a missing directory, or of a file in its place, raises OSError."""
    (tmp_path / "file").touch()
    for name in ("file", "missing"):
        with pytest.raises(OSError, match=r"[Nn]o"):
            Disk().sync_directory(tmp_path / name)
    Disk().sync_directory(tmp_path)


@pytest.mark.parametrize("fail_at", range(1, 4))
def test_temporary_file_of_a_killed_process_is_removed(tmp_path: Path, fail_at: int) -> None:
    """What a process that dies while it replaces a file has left goes, and nothing else."""
    target = tmp_path / "run.json"
    others = [tmp_path / name for name in (".other.json.0123abcd", ".run.json", ".run.json.swp")]
    for path in (target, *others):
        path.touch()
    (tmp_path / ".run.json.00000000").mkdir()  # a directory is no such file
    assert in_child(lambda: write_json(target, {}, FailingDisk(fail_at, die))) == DIED
    remove_temporaries(tmp_path, {"run.json"})
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {target.name, *(path.name for path in others), ".run.json.00000000"}


def test_no_operation_below_a_directory_follows_a_link(tmp_path: Path) -> None:
    """A link between a directory and a path below it makes each operation fail."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (elsewhere / ".exit.json.01234567").touch()
    (elsewhere / "kept").touch()
    (run / "attempts").symlink_to(elsewhere)
    (run / "file").touch()
    attempts, disk = run / "attempts", Disk()
    operations: list[Callable[[], object]] = [
        lambda: disk.make_directory(attempts / "new", below=run),
        lambda: disk.create(attempts / "new", below=run),
        lambda: disk.create_direct(attempts / "new", below=run),
        lambda: disk.rename(run / "file", attempts / "new", below=run),
        lambda: disk.rename(attempts / "kept", run / "new", below=run),
        lambda: disk.remove(attempts / "kept", below=run),
        lambda: write_json(attempts / "exit.json", NEW, below=run),
    ]
    for operation in operations:
        with pytest.raises(OSError, match="Not a directory|symbolic link|is a link"):
            operation()
    remove_temporaries(attempts, {"exit.json"}, below=run)
    remove_tree(attempts / "kept", below=run)
    assert sorted(os.listdir(elsewhere)) == [".exit.json.01234567", "kept"]
    assert sorted(os.listdir(run)) == ["attempts", "file"]


@pytest.mark.parametrize("place", [".", "deeper", "deeper/still"])
def test_tree_with_pipes_and_links_is_removed_at_once(tmp_path: Path, place: str) -> None:
    """A FIFO is not waited for, nor a link followed, in the place of a directory or inside it."""
    tree, elsewhere = tmp_path / "run/.trash", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (tree / place).mkdir(parents=True)
    for name in ("file", "other"):
        (tree / place / name).touch()
    os.mkfifo(tree / place / "pipe")
    (tree / place / "link").symlink_to(elsewhere)
    os.mkfifo(tmp_path / "run/.writing")
    (tmp_path / "run/.link").symlink_to(elsewhere)
    for name in (".trash", ".writing", ".link", "missing"):
        remove_tree(tmp_path / "run" / name, below=tmp_path / "run")
    assert os.listdir(tmp_path / "run") == []
    assert os.listdir(elsewhere) == ["kept"]
