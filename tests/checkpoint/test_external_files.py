"""Files that a framework has written become a checkpoint that the store treats as any other."""

import itertools
import json
import os
from pathlib import Path

import pytest

from orchestrator.checkpoint.checkpoint import Checkpoint, read_checkpoint
from orchestrator.checkpoint.manifest import Manifest
from orchestrator.checkpoint.newest_valid import newest_valid
from orchestrator.checkpoint.publication import publish_files
from orchestrator.checkpoint.retention import RetentionPolicy
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import export_state, verify
from orchestrator.errors import CheckpointInvalidError, CheckpointWriteError, ConfigError
from orchestrator.system.durable import Disk
from tests.checkpoint.support import manifest_of, names, new_store, reopened
from tests.support import FailingDisk, full_disk

FILES = {"model.bin": b"weights", ".metadata": b"{}", "shards/epoch=1 a/0.pt": b"shard"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "run")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory as a framework leaves it, with folders and names of its own kind."""
    for name, content in FILES.items():
        file = tmp_path / "checkpoint-7" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path / "checkpoint-7"


def publish_saved(store: Store, source: Path, step: int = 7, *, link: bool = True) -> Checkpoint:
    return publish_files(store, manifest_of(step, framework="someone's"), source, link=link)


@pytest.mark.parametrize("link", [True, False])
def test_directory_is_published_with_its_names_and_bytes(
    store: Store, saved: Path, link: bool
) -> None:
    """Every file keeps its name and bytes; it is a hard link only where that is allowed."""
    publish_saved(store, saved, link=link)
    found = newest_valid(reopened(store))
    assert found is not None
    assert found.manifest.files.keys() == FILES.keys()
    for name, content in FILES.items():
        file = found.resume_path / name
        assert file.read_bytes() == content
        assert file.samefile(saved / name) is link


def test_link_in_the_place_of_the_new_directory_has_nothing_removed_elsewhere(
    store: Store, saved: Path, tmp_path: Path
) -> None:
    """Another member of a group can have no file of this user deleted or replaced."""
    precious = tmp_path / "home" / "model.bin"
    precious.parent.mkdir()
    precious.write_bytes(b"precious")

    class SwappedDisk(Disk):
        def link(self, source: Path, target: Path, *, below: Path | None = None) -> None:
            super().link(source, target, below=below)
            target.parent.rename(tmp_path / "moved")
            target.parent.symlink_to(precious.parent)

    swapped = Store(store.run, store.run_id, SwappedDisk())
    with pytest.raises(CheckpointWriteError):
        publish_saved(swapped, saved / "model.bin")
    assert os.listdir(precious.parent) == ["model.bin"]
    assert precious.read_bytes() == b"precious"


def test_single_file_is_published(store: Store, saved: Path) -> None:
    """One file becomes a checkpoint of one file, and a link is published as the file it names."""
    (saved / "last.ckpt").symlink_to("model.bin")
    checkpoint = publish_saved(store, saved / "last.ckpt")
    verify(checkpoint)
    assert [path.name for path in checkpoint.resume_path.iterdir()] == ["last.ckpt"]
    assert not (checkpoint.resume_path / "last.ckpt").is_symlink()


def test_filesystem_without_links_gets_copies(
    store: Store, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are no hard links the files are copied."""
    monkeypatch.setattr(store.disk, "link", lambda *_, **__: full_disk())
    checkpoint = publish_saved(store, saved)
    verify(checkpoint)
    assert not (checkpoint.resume_path / "model.bin").samefile(saved / "model.bin")


def test_export_says_where_the_framework_files_are(
    store: Store, saved: Path, tmp_path: Path
) -> None:
    """A framework's checkpoint has no state.pt: the error names the files to copy."""
    checkpoint = publish_saved(store, saved)
    with pytest.raises(ConfigError, match="from .*step-000000000007/content"):
        export_state(checkpoint, tmp_path / "state.pt")
    assert not (tmp_path / "state.pt").exists()


def test_source_without_files_is_refused(store: Store, tmp_path: Path) -> None:
    """A framework that has written no file has saved no checkpoint."""
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    for source in ("empty", "absent"):
        with pytest.raises(CheckpointWriteError):
            publish_saved(store, tmp_path / source)
    assert names(store) == []


def test_write_into_a_linked_file_is_detected(store: Store, saved: Path) -> None:
    """Bytes that change behind a link are no longer trusted, and an older checkpoint is used."""
    older = publish_saved(store, saved, link=False)
    publish_saved(store, saved, step=8)
    (saved / "model.bin").write_bytes(b"rewritten")
    found = newest_valid(reopened(store))
    assert found is not None
    assert found.name == older.name
    assert [path.name for path in store.quarantine_folder.entries()] == ["step-000000000008"]


@pytest.mark.parametrize("linked", ["content", "content/shards", "content/shards/epoch=1 a/0.pt"])
def test_folder_that_is_a_link_is_not_trusted(store: Store, saved: Path, linked: str) -> None:
    """A manifest does not vouch for bytes elsewhere, even if they are the right ones."""
    checkpoint = publish_saved(store, saved)
    moved = store.run.root / "elsewhere"
    (checkpoint.path / linked).rename(moved)
    (checkpoint.path / linked).symlink_to(moved)
    with pytest.raises(CheckpointInvalidError, match="symbolic link"):
        verify(checkpoint)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "a//x", "a/", ".", "", "a/.", "x\0"])
def test_file_name_outside_the_directory_is_refused(store: Store, saved: Path, name: str) -> None:
    """A manifest names files below its own directory only."""
    checkpoint = publish_saved(store, saved)
    content = json.loads((checkpoint.path / "manifest.json").read_bytes())
    content["files"][name] = content["files"]["model.bin"]
    with pytest.raises(ValueError, match="outside its directory"):
        Manifest.from_json(json.dumps(content).encode())


def test_retention_deletes_folders_of_a_framework(store: Store, saved: Path) -> None:
    """A checkpoint that is not kept goes with all its folders; the framework's own files stay."""
    for step in (7, 8, 9):
        publish_saved(store, saved, step)
    (store.run.checkpoints / "step-000000000007" / "content" / "shards" / "note").write_text("mine")
    assert store.apply_retention(RetentionPolicy(keep=2)) == []
    (store.run.checkpoints / "step-000000000007" / "content" / "shards" / "note").unlink()
    assert [c.manifest.step for c in store.apply_retention(RetentionPolicy(keep=2))] == [7]
    assert names(store) == ["step-000000000008", "step-000000000009"]
    assert all((saved / name).read_bytes() == content for name, content in FILES.items())


@pytest.mark.parametrize("link", [True, False])
def test_full_disk_costs_only_the_new_framework_checkpoint(
    saved: Path, tmp_path: Path, link: bool
) -> None:
    """At whichever operation the disk is full, the older checkpoint stays and no half-made one."""
    for number in itertools.count(1):
        disk = FailingDisk(number, full_disk)
        store = new_store(tmp_path / f"run-{number}")
        publish_saved(store, saved)
        store.disk = disk
        try:
            publish_saved(store, saved, step=8, link=link)
        except CheckpointWriteError:
            assert not [name for name in names(store) if name.startswith(".")]
        newest = newest_valid(reopened(store))
        assert newest is not None
        verify(read_checkpoint(newest.path))
        if not disk.reached:
            break
    assert newest.manifest.step == 8
    assert number > 10
