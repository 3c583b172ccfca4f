"""Who may write to a run directory may replace its directories while the store works in them.

A link that takes the place of a directory at the worst moment leads to no file elsewhere.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.checkpoint.newest_valid import newest_valid
from orchestrator.checkpoint.publication import publish_files
from orchestrator.checkpoint.retention import RetentionPolicy
from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointWriteError
from orchestrator.system.durable import Disk
from tests.checkpoint.support import manifest_of, names, new_store, publish, valid_steps


class ReplacingDisk(Disk):
    """A disk on which somebody replaces a directory before an operation of one kind."""

    def __init__(self) -> None:
        self.before: dict[str, Callable[[Path], None]] = {}

    def _meet(self, operation: str, path: Path) -> None:
        if (act := self.before.pop(operation, None)) is not None:
            act(path)

    def make_directory(self, path: Path, *, below: Path | None = None) -> None:
        self._meet("make_directory", path)
        super().make_directory(path, below=below)

    def sync_directory(self, path: Path) -> None:
        self._meet("sync_directory", path)
        super().sync_directory(path)

    def rename(
        self,
        source: Path,
        target: Path,
        *,
        below: Path | None = None,
        source_below: Path | None = None,
    ) -> None:
        self._meet("rename", source)
        super().rename(source, target, below=below, source_below=source_below)


def put_link(path: Path, elsewhere: Path) -> None:
    path.rename(path.with_name(f"{path.name}-before"))
    path.symlink_to(elsewhere)


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.fixture
def disk() -> ReplacingDisk:
    return ReplacingDisk()


@pytest.fixture
def store(tmp_path: Path, disk: ReplacingDisk) -> Store:
    return new_store(tmp_path / "shared", steps=(1, 2, 3), disk=disk)


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """Another run, which has the names that the manifests of this one have."""
    return new_store(tmp_path / "precious", steps=(1, 2, 3)).run.checkpoints


def test_deletion_follows_no_link_in_the_place_of_what_it_deletes(
    store: Store, disk: ReplacingDisk, precious: Path
) -> None:
    """A link that takes the place of a renamed checkpoint leads its deletion nowhere."""
    before = tree(precious)

    def act(checkpoints: Path) -> None:
        (trash,) = checkpoints.glob(".trash-*")
        put_link(trash, precious / "step-000000000001")

    disk.before["sync_directory"] = act
    store.apply_retention(RetentionPolicy(keep=2))
    assert tree(precious) == before


@pytest.mark.parametrize("operation", ["rename", "sync_directory"])
def test_deletion_follows_no_link_in_the_place_of_checkpoints(
    store: Store, disk: ReplacingDisk, precious: Path, operation: str
) -> None:
    """A link that takes the place of checkpoints/ leads a deletion to no other run."""
    before = tree(precious)
    disk.before[operation] = lambda path: put_link(store.run.checkpoints, precious)
    store.apply_retention(RetentionPolicy(keep=2))
    assert tree(precious) == before


def test_deletion_follows_no_link_in_a_folder_of_the_checkpoint(
    tmp_path: Path, disk: ReplacingDisk, precious: Path
) -> None:
    """A link that takes the place of a folder of a framework's files leads nowhere."""
    store = new_store(tmp_path / "framework", disk=disk)
    source = tmp_path / "source"
    (source / "step-000000000001").mkdir(parents=True)
    (source / "step-000000000001/state.pt").write_bytes(b"weights")
    for step in (1, 2, 3):
        publish_files(store, manifest_of(step, framework="x"), source, link=False)
    before = tree(precious)

    def act(checkpoints: Path) -> None:
        (trash,) = checkpoints.glob(".trash-*")
        put_link(trash / "content", precious)

    disk.before["sync_directory"] = act
    store.apply_retention(RetentionPolicy(keep=2))
    assert tree(precious) == before


def test_sweep_follows_no_link(store: Store, precious: Path) -> None:
    """What another run is just writing or deleting is not swept through a link."""
    (precious / ".writing-0123456789abcdef").mkdir()
    (precious / ".writing-0123456789abcdef/state.pt").write_bytes(b"half")
    before = tree(precious)
    put_link(store.run.checkpoints, precious)
    store.sweep()
    assert tree(precious) == before


def test_publishing_follows_no_link(store: Store, disk: ReplacingDisk, precious: Path) -> None:
    """A link in the place of checkpoints/ brings no checkpoint into another run."""
    before = names_in(precious)
    disk.before["make_directory"] = lambda path: put_link(store.run.checkpoints, precious)
    with pytest.raises(CheckpointWriteError):
        publish(store, 4)
    assert names_in(precious) == before


def test_quarantine_follows_no_link(store: Store, precious: Path) -> None:
    """A link in the place of quarantine/ brings no checkpoint of another into a directory."""
    before = names_in(precious.parent)
    store.run.quarantine.symlink_to(precious.parent)
    damaged = store.run.checkpoints / "step-000000000003/state.pt"
    damaged.write_bytes(b"damaged")
    with contextlib.suppress(OSError):
        newest_valid(store)
    assert names_in(precious.parent) == before
    assert "step-000000000003" in names(store)


def test_a_run_directory_may_be_a_link(tmp_path: Path, disk: ReplacingDisk) -> None:
    """The run directory itself may be reached through a link, for every operation."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store = new_store(tmp_path / "link", steps=(1, 2, 3), disk=disk)
    (store.run.checkpoints / "step-000000000003/state.pt").write_bytes(b"damaged")
    newest_valid(store)
    publish(store, 4)
    store.apply_retention(RetentionPolicy(keep=2))
    store.sweep()
    assert valid_steps(store) == [2, 4]


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}
