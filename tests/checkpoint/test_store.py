"""The store: what it lists, keeps, deletes and sweeps, and which run it belongs to."""

import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.checkpoint.checkpoint import PublicationOrder, read_checkpoint
from orchestrator.checkpoint.newest_valid import newest_valid
from orchestrator.checkpoint.retention import BestPolicy, RetentionPolicy
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import export_state, verify
from orchestrator.errors import CheckpointInvalidError, UnreadableError
from orchestrator.rundir.paths import RunDir
from tests.checkpoint.damage import damaged, flip_bit
from tests.checkpoint.support import (
    RUN_ID,
    names,
    new_store,
    path_of,
    publish,
    reopened,
    state_of,
    valid_steps,
)
from tests.support import FailingDisk

KEEP_TWO = RetentionPolicy(keep=2)


# --- the identity of the run ---------------------------------------------------------------------


def test_lost_run_file_is_written_again(store: Store) -> None:
    """Without run.json the checkpoints tell the run's id, so they are still used."""
    (path_of(store, 300) / "manifest.json").unlink()
    again = Store.open(store.run, ["python", "train.py"])
    assert again.run_id == RUN_ID
    newest = newest_valid(again)
    assert newest is not None
    assert newest.manifest.step == 200
    assert Store.open(store.run, []).run_id == RUN_ID


def test_run_file_outweighs_the_checkpoints(store: Store) -> None:
    """Checkpoints that were copied from another run do not rename this one."""
    own = Store.open(store.run, []).run_id
    publish(store, 400, run_id="another")
    assert Store.open(store.run, []).run_id == own == RUN_ID


# --- retention -----------------------------------------------------------------------------------


def test_retention_deletes_the_oldest_checkpoint(store: Store) -> None:
    """The newest two stay whole; the deleted one is returned, and no file of it is left."""
    deleted = store.apply_retention(KEEP_TWO)
    assert [checkpoint.manifest.step for checkpoint in deleted] == [100]
    assert valid_steps(store) == [200, 300]
    assert names(store) == ["step-000000000200", "step-000000000300"]
    assert store.apply_retention(KEEP_TWO) == []


@damaged
def test_damaged_checkpoint_does_not_count_for_retention(
    store: Store, damage: Callable[[Path], object]
) -> None:
    """When the newest is damaged, the two older ones stay."""
    damage(path_of(store, 300))
    store = reopened(store)
    assert store.apply_retention(KEEP_TWO) == []
    assert valid_steps(store) == [100, 200]


def test_checkpoint_damaged_after_verification_does_not_count(store: Store) -> None:
    """Retention notices damage to a file that this process has verified before."""
    newest_valid(store)
    os.truncate(path_of(store, 300) / "state.pt", 100)
    reported: list[CheckpointInvalidError] = []
    assert store.apply_retention(KEEP_TWO, on_quarantine=reported.append) == []
    assert valid_steps(store) == [100, 200]
    assert [error.path.name for error in reported] == ["step-000000000300"]


def test_checkpoint_in_use_stays(store: Store) -> None:
    """The checkpoint that a trainer resumes from is not deleted meanwhile."""
    publish(store, 400)
    store.apply_retention(KEEP_TWO, in_use=["step-000000000100"])
    assert valid_steps(store) == [100, 300, 400]


def test_best_checkpoint_stays(empty: Store) -> None:
    """The policy uses the metrics as they were saved."""
    for step, loss in ((1, 0.9), (2, 0.1), (3, 0.5), (4, 0.6)):
        publish(empty, step, metrics={"loss": loss})
    empty.apply_retention(RetentionPolicy(keep=2, best=BestPolicy("loss", "min")))
    assert valid_steps(empty) == [2, 3, 4]


def test_foreign_and_unreadable_checkpoints_stay(store: Store) -> None:
    """Checkpoints of another run and unreadable ones are not deleted."""
    publish(store, 50, run_id="another")
    (path_of(store, 100) / "manifest.json").write_text("torn")
    store.apply_retention(KEEP_TWO)
    assert names(store) == [f"step-{step:012d}" for step in (50, 100, 200, 300)]


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "state.pt.bak"])
def test_foreign_file_protects_a_checkpoint(store: Store, name: str) -> None:
    """A checkpoint with a file of another program is not deleted, in whole or in part."""
    (path_of(store, 100) / name).write_text("mine")
    assert store.apply_retention(KEEP_TWO) == []
    assert valid_steps(store) == [100, 200, 300]
    assert (path_of(store, 100) / name).read_text() == "mine"


def test_directory_that_is_too_deep_protects_a_checkpoint(store: Store) -> None:
    """Another user's directories in a checkpoint, however deep, do not end the retention."""
    path = path_of(store, 100)
    for level in range(1, 1100):
        path.joinpath("d/" * level).mkdir()
    try:
        assert store.apply_retention(KEEP_TWO) == []
        assert valid_steps(store) == [100, 200, 300]
    finally:
        subprocess.run(["rm", "-r", path / "d"], check=True)  # shutil.rmtree() fails at it


def test_pinned_checkpoint_stays_until_it_is_unpinned(store: Store) -> None:
    """A pin holds across processes, is seen by readers, and can be taken back."""
    oldest = store.all()[0]
    assert not oldest.pinned
    store.pin(oldest)
    store.pin(oldest)
    assert [checkpoint.pinned for checkpoint in reopened(store).all()] == [True, False, False]
    assert reopened(store).apply_retention(KEEP_TWO) == []
    assert valid_steps(store) == [100, 200, 300]
    store.unpin(oldest)
    store.unpin(oldest)
    reopened(store).apply_retention(KEEP_TWO)
    assert valid_steps(store) == [200, 300]


def test_failed_deletion_is_not_reported(tmp_path: Path) -> None:
    """A checkpoint that could not be renamed stays one, and is not reported as deleted."""
    store = new_store(tmp_path / "run", (100, 200, 300), FailingDisk())
    store.disk = FailingDisk(1)
    assert store.apply_retention(KEEP_TWO) == []
    assert valid_steps(store) == [100, 200, 300]
    store.disk = FailingDisk()
    assert len(store.apply_retention(KEEP_TWO)) == 1


# --- sweeping ------------------------------------------------------------------------------------


def test_sweep_removes_only_half_written_and_half_deleted_directories(
    store: Store, tmp_path: Path
) -> None:
    """Temporary directories are removed; everything else stays as it is."""
    temporary = [".writing-0123456789abcdef", ".trash-step-000000000050-01234567"]
    for name in temporary:
        (store.run.checkpoints / name).mkdir()
        (store.run.checkpoints / name / "state.pt").write_bytes(b"half")
    others = ["notes", ".hidden", "quarantine", "step-7", "writing-abc"]
    for name in others:
        (store.run.checkpoints / name).mkdir()
        (store.run.checkpoints / name / "file").write_bytes(b"precious")
    store.sweep()
    assert valid_steps(store) == [100, 200, 300]
    assert set(names(store)) == {*others, *(f"step-{step:012d}" for step in (100, 200, 300))}
    assert all((store.run.checkpoints / name / "file").exists() for name in others)


def test_sweep_follows_no_link(store: Store, tmp_path: Path) -> None:
    """The target of a link with a temporary name stays whole."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (store.run.checkpoints / ".trash-link").symlink_to(outside)
    store.sweep()
    assert (outside / "file").exists()


def test_sweep_of_a_missing_directory_is_silent(tmp_path: Path) -> None:
    """A run directory without checkpoints is swept without an error."""
    Store(RunDir(tmp_path / "missing"), RUN_ID).sweep()


# --- exporting -----------------------------------------------------------------------------------


def test_export_has_the_saved_bytes(store: Store, tmp_path: Path) -> None:
    """The copy is the state, byte for byte, and the checkpoint is untouched."""
    export_state(store.all()[-1], tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == state_of(300)
    assert valid_steps(store) == [100, 200, 300]


def test_damaged_state_is_not_exported(store: Store, tmp_path: Path) -> None:
    """A copy that differs from the saved state is refused and removed."""
    newest = store.all()[-1]
    flip_bit(newest.state_file)
    with pytest.raises(CheckpointInvalidError, match=r"state\.pt has changed"):
        export_state(newest, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_export_replaces_no_file(store: Store, tmp_path: Path) -> None:
    """A file that exists is refused and stays as it is."""
    (tmp_path / "model.pt").write_text("precious")
    with pytest.raises(FileExistsError):
        export_state(store.all()[-1], tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_text() == "precious"


@pytest.mark.parametrize("number", range(2, 8))
def test_export_to_a_full_disk_leaves_nothing(store: Store, tmp_path: Path, number: int) -> None:
    """An unfinished copy is removed, so that it cannot be taken for the state."""
    with pytest.raises(OSError, match="No space left"):
        export_state(store.all()[-1], tmp_path / "model.pt", FailingDisk(number))
    assert not (tmp_path / "model.pt").exists()


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("step-000000000000", (0, 1)),
        ("step-000000001200", (1200, 1)),
        ("step-000000001200-2", (1200, 2)),
        ("step-999999999999-10", (999_999_999_999, 10)),
    ],
)
def test_publication_order_is_in_the_name(name: str, order: tuple[int, int]) -> None:
    """The name alone tells in which order checkpoints were published."""
    assert PublicationOrder.of_name(name) == PublicationOrder(*order)


@pytest.mark.parametrize("name", ["", "step-1", "step-000000001200-", "quarantine", ".writing-a"])
def test_other_names_have_no_publication_order(name: str) -> None:
    """A directory that is not named like a checkpoint is refused."""
    with pytest.raises(ValueError, match="not the name of a checkpoint"):
        PublicationOrder.of_name(name)


def test_checkpoint_that_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    """Too many open files say nothing about a checkpoint: it is not moved and not passed over."""
    store = new_store(tmp_path / "run", (100, 200))
    newest = store.all()[-1]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(UnreadableError, match=r"manifest\.json"):
            read_checkpoint(newest.path)
        with pytest.raises(UnreadableError, match=r"state\.pt"):
            verify(newest)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert valid_steps(store) == [100, 200]
    assert store.quarantine_folder.entries() == []
