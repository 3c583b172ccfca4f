"""A directory that a wildcard names gives way to a link: nothing behind it is touched or copied."""

import shutil
from pathlib import Path

import pytest

from orchestrator.adopt.pattern import Pattern
from orchestrator.adopt.pointers import repair_pointers
from orchestrator.adopt.scan_events import Moment, Sealed
from orchestrator.adopt.seal_store import Seal, Sealing
from orchestrator.checkpoint.manifest import Reason
from orchestrator.system.durable import Disk
from tests.adopt.test_save_scanner import Script, kinds

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


@pytest.mark.parametrize("name", BELOW_LINKS)
def test_copy_is_not_put_back_behind_the_link(tmp_path: Path, home: Path, name: str) -> None:
    """What is there stays as it is, and gets nothing beside it."""
    script = script_of(tmp_path, name)
    seal = kept_seal(script, name)
    (script.out / name).unlink()
    swap(script, home)
    before = content_of(home)
    with pytest.raises(OSError, match="Not a directory"):
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
    with pytest.raises(OSError, match="Not a directory"):
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
