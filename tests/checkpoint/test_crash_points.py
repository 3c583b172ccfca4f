"""Every operation of a save fails once, and in every way: the run goes on from what is left.

The save is a publish and the retention after it, in a run with three valid checkpoints of which two
are to stay. Operation 1 fails, then operation 2, and so on until the save passes without a fault.
"""

import contextlib
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from orchestrator.checkpoint.newest_valid import newest_valid
from orchestrator.checkpoint.retention import RetentionPolicy
from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointInvalidError, CheckpointWriteError
from orchestrator.rundir.paths import RunDir
from orchestrator.system.durable import Disk
from tests.checkpoint.power_loss import LazyFilesystem, write_tree
from tests.checkpoint.support import RUN_ID, names, new_store, publish, state_of, valid_steps
from tests.support import DIED, FailingDisk, die, full_disk, in_child, input_output_error

OLD_STEPS = (100, 200, 300)
NEW_STEP = 400
KEEP_TWO = RetentionPolicy(keep=2)
# Fewer would mean that the counting is broken: making, writing, syncing, renaming, deleting.
FEWEST_OPERATIONS = 20


@pytest.fixture(scope="module")
def run_with_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_store(tmp_path_factory.mktemp("runs") / "run", OLD_STEPS).run.root


def copy_of(original: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(original, target, symlinks=True))


def open_store(root: Path, disk: Disk | None = None) -> Store:
    return Store(RunDir(root), RUN_ID, disk or FailingDisk())


def save(store: Store) -> None:
    """The save under test; notes in the log when the new checkpoint was promised to be durable."""
    publish(store, NEW_STEP)
    assert isinstance(store.disk, FailingDisk)
    store.disk.record("published")
    store.apply_retention(KEEP_TWO)


def assert_run_goes_on(root: Path, *, promised: bool, where: str) -> None:
    """Whatever the save left behind, nothing is lost and the next save works."""
    store = open_store(root)
    set_aside: list[CheckpointInvalidError] = []
    valid = valid_steps(store)
    newest = newest_valid(store, set_aside.append)
    assert not set_aside, f"{where}: a name was given to something torn: {set_aside}"
    assert len(valid) >= 2, f"{where}: only {valid} are valid"
    named = [path.name for path in store.directories()]
    assert len(named) == len(valid), f"{where}: of {named} only {valid} are valid"
    assert newest is not None
    allowed = [NEW_STEP] if promised else [OLD_STEPS[-1], NEW_STEP]
    assert newest.manifest.step in allowed, f"{where}: {newest.name} is the newest"
    assert newest.state_file.read_bytes() == state_of(newest.manifest.step), where
    store.sweep()
    hidden = [name for name in names(store) if name.startswith(".")]
    assert not hidden, f"{where}: the sweep left {hidden}"
    publish(store, NEW_STEP + 100)
    store.apply_retention(KEEP_TWO)
    assert valid_steps(store) == [newest.manifest.step, NEW_STEP + 100], where


@pytest.mark.parametrize("forever", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("after_effect", [False, True], ids=["instead", "after-its-effect"])
@pytest.mark.parametrize("fault", [full_disk, input_output_error])
def test_operation_that_raises_costs_the_new_checkpoint_at_most(
    run_with_three: Path,
    tmp_path: Path,
    fault: Callable[[], NoReturn],
    after_effect: bool,
    forever: bool,
) -> None:
    """A full disk or an I/O error at any operation costs the new checkpoint at most."""
    for number in itertools.count(1):
        root = copy_of(run_with_three, tmp_path / "run")
        disk = FailingDisk(number, fault, after_effect=after_effect, forever=forever)
        store = open_store(root, disk)
        promised = False
        with contextlib.suppress(CheckpointWriteError):
            publish(store, NEW_STEP)
            promised = True
            store.apply_retention(KEEP_TWO)
        if not promised:
            leftovers = [name for name in names(store) if name.startswith(".writing")]
            assert not leftovers, f"operation {number}: {leftovers} take space on a full disk"
        assert_run_goes_on(root, promised=promised, where=f"operation {number}")
        if not disk.reached:
            break
    assert number > FEWEST_OPERATIONS


def test_store_saves_again_after_an_error(run_with_three: Path, tmp_path: Path) -> None:
    """The process that met the error saves and rotates again once the disk works."""
    for number in itertools.count(1):
        root = copy_of(run_with_three, tmp_path / "run")
        disk = FailingDisk(number, forever=True)
        store = open_store(root, disk)
        with contextlib.suppress(CheckpointWriteError):
            save(store)
        reached = disk.reached
        disk.heal()
        publish(store, NEW_STEP + 100)
        store.apply_retention(KEEP_TWO)
        valid = valid_steps(store)
        assert len(valid) == 2, f"operation {number}: {valid}"
        assert valid[-1] == NEW_STEP + 100
        if not reached:
            break
    assert number > FEWEST_OPERATIONS


@pytest.mark.processes
def test_process_that_dies_leaves_a_run_that_resumes(run_with_three: Path, tmp_path: Path) -> None:
    """A process killed at any operation leaves a run that resumes from its newest checkpoint."""
    for number in itertools.count(1):
        root = copy_of(run_with_three, tmp_path / "run")
        log = tmp_path / f"log-{number}"
        status = in_child(lambda: save(open_store(root, FailingDisk(number, die, log=log))))  # noqa: B023
        promised = b'["published"]' in log.read_bytes()
        assert_run_goes_on(root, promised=promised, where=f"death at operation {number}")
        if status == 0:
            break
        assert status == DIED
    assert number > FEWEST_OPERATIONS
    assert promised


@pytest.mark.processes
def test_power_loss_takes_nothing_that_was_promised(run_with_three: Path, tmp_path: Path) -> None:
    """A power loss at any operation keeps what was promised, on the laziest filesystem."""
    trees = 0
    for number in itertools.count(1):
        root = copy_of(run_with_three, tmp_path / "run")
        log = tmp_path / f"log-{number}"
        filesystem = LazyFilesystem(root)
        status = in_child(lambda: save(open_store(root, FailingDisk(number, die, log=log))))  # noqa: B023
        promised = "published" in filesystem.replay(log)
        for tree in filesystem.after_loss():
            trees += 1
            write_tree(tree, root)
            where = f"power loss at operation {number}, {sorted(tree)}"
            assert_run_goes_on(root, promised=promised, where=where)
        if status == 0:
            break
    assert number > FEWEST_OPERATIONS
    assert trees > 2 * number, "hardly anything was ever lost: the model of the loss is broken"


def test_operation_log_rebuilds_the_disk(run_with_three: Path, tmp_path: Path) -> None:
    """A log in which everything was synced rebuilds the run byte for byte."""
    root = copy_of(run_with_three, tmp_path / "run")
    filesystem = LazyFilesystem(root)
    store = open_store(root, FailingDisk(log=tmp_path / "log"))
    save(store)
    store.disk.sync_directory(store.run.checkpoints)
    filesystem.replay(tmp_path / "log")
    (tree,) = filesystem.after_loss()
    write_tree(tree, tmp_path / "rebuilt")
    files = {path.relative_to(root): path for path in root.rglob("*")}
    rebuilt = {path.relative_to(tmp_path / "rebuilt") for path in tmp_path.glob("rebuilt/**/*")}
    assert rebuilt - {Path()} == files.keys()
    assert all(
        (tmp_path / "rebuilt" / name).read_bytes() == path.read_bytes()
        for name, path in files.items()
        if path.is_file()
    )


@pytest.mark.processes
def test_power_loss_during_quarantine_loses_no_checkpoint(
    run_with_three: Path, tmp_path: Path
) -> None:
    """A checkpoint on its way to quarantine is at its old path or in quarantine, never gone."""
    name = f"step-{OLD_STEPS[-1]:012d}"
    for number in itertools.count(1):
        root = copy_of(run_with_three, tmp_path / "run")
        log = tmp_path / f"log-{number}"
        filesystem = LazyFilesystem(root)
        store = open_store(root, FailingDisk(number, die, log=log))
        status = in_child(lambda: store.quarantine(store.directories()[-1], "it is damaged"))  # noqa: B023
        filesystem.replay(log)
        for tree in filesystem.after_loss():
            write_tree(tree, root)
            paths = [p / name for p in (store.run.quarantine, store.run.checkpoints)]
            there = [path for path in paths if path.exists()]
            where = f"power loss at operation {number}, {sorted(tree)}"
            assert there, f"{where}: it is gone"
            kept = (there[0] / "state.pt").read_bytes()
            assert kept == state_of(OLD_STEPS[-1]), f"{where}: its bytes are gone"
        if status == 0:
            break
        assert status == DIED
    assert there == paths[:1], "the quarantined checkpoint came back"
    assert number > 4


def test_disk_that_fails_during_quarantine_does_not_hide_an_older_checkpoint(
    run_with_three: Path, tmp_path: Path
) -> None:
    """The older checkpoint is used although the damaged one cannot be moved."""
    for number in itertools.count(1):
        root = copy_of(run_with_three, tmp_path / "run")
        disk = FailingDisk(number, forever=True)
        store = open_store(root, disk)
        (store.directories()[-1] / "state.pt").write_bytes(b"")
        reported: list[CheckpointInvalidError] = []
        newest = newest_valid(store, reported.append)
        assert newest is not None, f"operation {number}"
        assert newest.manifest.step == OLD_STEPS[-2], f"operation {number}"
        assert [error.path.name for error in reported] == [f"step-{OLD_STEPS[-1]:012d}"]
        if not disk.reached:
            break
    assert number > 4
