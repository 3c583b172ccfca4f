"""A file is swapped while it is sealed or put back: nothing else of this user's is copied."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.adopt.files import SavedFiles
from orchestrator.adopt.scan_events import Moment
from orchestrator.adopt.seal_store import Sealing
from orchestrator.checkpoint.external_files import link_or_copy
from orchestrator.checkpoint.manifest import Reason
from orchestrator.system.durable import Disk
from tests.adopt.support import Script

SECRET = b"only for its owner"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A private directory, in which a file has the name of a save."""
    (tmp_path / "home").mkdir()
    for name in ("last.pt", "a.pt"):
        (tmp_path / "home" / name).write_bytes(SECRET)
    return tmp_path / "home"


def put_link(path: Path, home: Path) -> None:
    path.unlink()
    path.symlink_to(home / path.name)


def put_fifo(path: Path, home: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_link_above(path: Path, home: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))
    path.parent.symlink_to(home)


Swap = Callable[[Path, Path], None]
swaps = pytest.mark.parametrize("swap", [put_link, put_fifo, put_link_above])


def assert_secret_stays(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink() and "home" not in path.parts:
            assert path.read_bytes() != SECRET, path


@swaps
def test_kept_copy_that_was_swapped_is_not_put_back(tmp_path: Path, home: Path, swap: Swap) -> None:
    """What takes the place of a kept file after it was verified leads to no other file."""
    script = Script(tmp_path, "last.pt")
    script.scan(Moment.FIRST_START)
    script.save("last.pt")
    script.scan(Moment.SUCCEEDED)
    (script.out / "last.pt").unlink()
    (seal,) = script.seals.seals().values()
    swap(seal.checkpoint.contents.folder / "last.pt", home)
    with pytest.raises(OSError, match="link|regular file|Not a directory"):
        script.seals.put_back(seal)
    assert not (script.out / "last.pt").exists()
    assert_secret_stays(tmp_path)


@swaps
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("link", [True, False])
def test_save_that_was_swapped_is_not_sealed(
    tmp_path: Path, home: Path, swap: Swap, keep: bool, link: bool
) -> None:
    """What takes the place of a save after it was examined is neither copied nor digested."""
    script = Script(tmp_path, "c-*")
    script.save("c-1/a.pt")
    files = SavedFiles.at(script.out / "c-1")
    assert files is not None
    swap(script.out / "c-1" / "a.pt", home)
    sealing = Sealing(files, None, 1, 1, Reason.PERIODIC, written_here=True, keep=keep, link=link)
    assert script.seals.seal(sealing) is None
    assert script.store.all() == []
    assert_secret_stays(tmp_path)


@swaps
@pytest.mark.parametrize("link", [True, False])
def test_nothing_behind_a_link_is_linked_or_copied(
    tmp_path: Path, home: Path, swap: Swap, link: bool
) -> None:
    """A hard link to a private file would be put back later as a file that others can read."""
    origin = tmp_path / "out" / "c-1" / "a.pt"
    origin.parent.mkdir(parents=True)
    origin.write_bytes(b"a save")
    swap(origin, home)
    with contextlib.suppress(OSError):
        link_or_copy(origin, tmp_path / "copy" / "a.pt", Disk(), link=link, below=tmp_path / "out")
    assert_secret_stays(tmp_path)
