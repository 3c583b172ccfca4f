"""A directory that a wildcard names gives way to a link: nothing behind it is touched or copied."""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from orchestrator.adopt.pattern import Pattern
from orchestrator.adopt.pointers import repair_pointers
from orchestrator.adopt.scan_events import Moment, Sealed
from orchestrator.adopt.seal_store import Seal, Sealing, SealStore
from orchestrator.checkpoint.manifest import Reason
from orchestrator.system.durable import Disk
from tests.adopt.support import Script, kinds

PATTERN = "*/last.pt"
BELOW_LINKS = ["exp1/last.pt", "exp1/seed/last.pt"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A private directory, in which files have the names of a save's."""
    for name in ("last.pt", "seed/last.pt", "latest"):
        (tmp_path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / name).write_bytes(b"only for its owner")
    return tmp_path / "home"


def content_of(directory: Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def swap(script: Script, home: Path) -> None:
    (script.out / "exp1").rename(script.out / "moved")
    (script.out / "exp1").symlink_to(home)


def script_of(root: Path, name: str) -> Script:
    script = Script(root, name.replace("exp1", "*").replace("seed", "*"))
    (script.out / name).parent.mkdir(parents=True)
    return script


def kept_seal(script: Script, name: str) -> Seal:
    script.scan(Moment.FIRST_START)
    script.save(name)
    assert kinds(script.scan(Moment.SUCCEEDED)) == [Sealed]
    (seal,) = script.seals.seals().values()
    assert seal.adopted.kept
    return seal


@pytest.mark.parametrize("name", BELOW_LINKS)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("link", [True, False])
def test_nothing_behind_the_link_is_sealed(
    tmp_path: Path, home: Path, name: str, keep: bool, link: bool
) -> None:
    """The directory is swapped after the save was looked at, or before."""
    script = script_of(tmp_path, name)
    script.save(name)
    files = script.seals.pattern.look_at([script.out / name])
    assert files is not None
    swap(script, home)
    for level in (home, home / "seed"):  # also where every fact about the file is the same
        shutil.copy2(script.out / name.replace("exp1", "moved"), level / "last.pt")
    before = content_of(home)
    sealing = Sealing(files, None, 1, 1, Reason.PERIODIC, written_here=True, keep=keep, link=link)
    assert script.seals.seal(sealing) is None
    assert script.seals.pattern.look_at([script.out / name]) is None
    assert script.store.all() == []
    assert content_of(home) == before


class SwappingDisk(Disk):
    """A Disk that calls ``back`` when a directory is synced, and ``swap`` before a file is made."""

    def __init__(self) -> None:
        self.back: Callable[[], object] = lambda: None
        self.swap: Callable[[], object] = lambda: None

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self.back()

    def create(self, path: Path, *, below: Path | None = None) -> BinaryIO:
        self.swap()
        return super().create(path, below=below)


@pytest.mark.parametrize("name", BELOW_LINKS)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("link", [True, False])
def test_nothing_is_sealed_from_behind_a_link_that_is_gone_again(
    tmp_path: Path, home: Path, name: str, keep: bool, link: bool
) -> None:
    """The directory is back in its place when the save is looked at once more."""
    script = script_of(tmp_path, name)
    script.save(name)
    files = script.seals.pattern.look_at([script.out / name])
    assert files is not None
    for level in (home, home / "seed"):
        (level / "last.pt").write_bytes(bytes((script.out / name).stat().st_size))
    swap(script, home)

    def back() -> None:
        if (script.out / "exp1").is_symlink():
            (script.out / "exp1").unlink()
            (script.out / "moved").rename(script.out / "exp1")

    disk = SwappingDisk()
    disk.back = back
    store = replace(script.store, disk=disk)
    sealing = Sealing(files, None, 1, 1, Reason.PERIODIC, written_here=True, keep=keep, link=link)
    with contextlib.suppress(OSError):
        SealStore(store, script.seals.pattern).seal(sealing)
    assert store.all() == []


@pytest.mark.parametrize("name", BELOW_LINKS)
def test_copy_is_not_put_back_behind_the_link(tmp_path: Path, home: Path, name: str) -> None:
    """What is there stays as it is, and gets nothing beside it."""
    script = script_of(tmp_path, name)
    seal = kept_seal(script, name)
    (script.out / name).unlink()
    swap(script, home)
    before = content_of(home)
    with pytest.raises(OSError, match="is a link or a file"):
        script.seals.put_back(seal)
    assert not script.seals.is_in_place(seal)
    assert content_of(home) == before
    (script.out / "exp1").unlink()
    script.seals.put_back(seal)
    assert script.seals.is_in_place(seal)


@pytest.mark.parametrize("name", BELOW_LINKS)
def test_nothing_behind_the_link_is_set_aside_or_deleted(
    tmp_path: Path, home: Path, name: str
) -> None:
    """Neither as a torn save nor with a seal that goes to quarantine or is deleted."""
    script = script_of(tmp_path, name)
    seal = kept_seal(script, name)
    swap(script, home)
    before = content_of(home)
    with pytest.raises(OSError, match="is a link or a file"):
        script.seals.set_aside([script.out / name], "torn")
    script.store.quarantine(seal.checkpoint.path, "wrong digest")
    assert content_of(home) == before


def test_pointer_behind_the_link_is_not_rewritten(tmp_path: Path, home: Path) -> None:
    """The file `latest` of another directory does not get the name of this checkpoint."""
    script = Script(tmp_path, "*/c-*")
    script.save("exp1/c-1")
    (script.out / "exp1" / "latest").write_text("c-2")
    (home / "latest").write_text("c-2")
    swap(script, home)
    pattern = Pattern.parse(str(script.out / "*" / "c-*"))
    assert list(repair_pointers(pattern, script.out / "exp1" / "c-1", Disk())) == []
    assert (home / "latest").read_text() == "c-2"
    (pointer,) = repair_pointers(pattern, script.out / "moved" / "c-1", Disk())
    assert pointer.named == "c-2"
    assert (script.out / "moved" / "latest").read_text() == "c-1"


def test_pointer_is_not_written_behind_a_link_that_comes_meanwhile(
    tmp_path: Path, home: Path
) -> None:
    """The directory is swapped between the look at the file and its replacement."""
    script = Script(tmp_path, "*/c-*")
    script.save("exp1/c-1")
    (script.out / "exp1" / "latest").write_text("c-2")
    disk = SwappingDisk()
    disk.swap = lambda: swap(script, home)
    pattern, before = Pattern.parse(str(script.out / "*" / "c-*")), content_of(home)
    with pytest.raises(OSError, match="is a link or a file"):
        list(repair_pointers(pattern, script.out / "exp1" / "c-1", disk))
    assert content_of(home) == before


def test_link_to_a_data_disk_above_the_wildcards_is_the_users_own(
    tmp_path: Path, home: Path
) -> None:
    """The part of the pattern without wildcards may be a link, which the user has made."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "scratch")
    script = script_of(tmp_path, "exp1/last.pt")
    seal = kept_seal(script, "exp1/last.pt")
    (script.out / "exp1" / "last.pt").unlink()
    script.seals.put_back(seal)
    assert script.seals.is_in_place(seal)
    assert script.seals.set_aside([script.out / "exp1/last.pt"], "torn").exists()
