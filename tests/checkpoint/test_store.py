"""The store: what is published is found again, and what is damaged is never trusted."""

import errno
import json
import os
import resource
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.checkpoint.checkpoint import Checkpoint, PublicationOrder, read_checkpoint
from orchestrator.checkpoint.retention import BestPolicy, RetentionPolicy
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import export_state, verify
from orchestrator.errors import CheckpointInvalidError, NoValidCheckpointError, UnreadableError
from orchestrator.rundir.paths import RunDir
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
from tests.support import DEADLINE_SECONDS, FailingDisk

KEEP_TWO = RetentionPolicy(keep=2)
DIGEST_OF_NOTHING = "99aa06d3014798d86001c324468d497f"


def flip_bit(file: Path, offset: int = 12_345) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(data)


def edit_manifest(path: Path, **changes: object) -> None:
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | changes))


# --- finding the newest valid one ----------------------------------------------------------------


def test_run_without_checkpoints_starts_from_zero(empty: Store) -> None:
    """Without candidates and with an empty quarantine there is no checkpoint to resume from."""
    assert empty.newest_valid() is None
    shutil.rmtree(empty.run.checkpoints)
    assert empty.newest_valid() is None


def test_other_files_are_no_checkpoints(empty: Store) -> None:
    """Entries that are not named like a checkpoint are neither used nor touched."""
    others = ["notes.txt", "step-7", "step-000000000007.bak", ".writing-abc", "xstep-000000000007"]
    for name in others:
        (empty.run.checkpoints / name).mkdir()
    assert empty.newest_valid() is None
    assert names(empty) == sorted(others)


def move_elsewhere(path: Path) -> Path:
    """Put something outside the run, whole and valid, and return where it is."""
    target = path.parents[2] / f"elsewhere-{path.name}"
    path.rename(target)
    return target


def replace_by_link(path: Path) -> None:
    path.symlink_to(move_elsewhere(path))


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def state_zeroed(path: Path, start: int, end: int) -> None:
    data = bytearray(state_of(300))
    data[start:end] = bytes(end - start)
    (path / "state.pt").write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path / "state.pt", 19_999),
    "longer": lambda path: (path / "state.pt").write_bytes(state_of(300) + b"x"),
    "one bit flipped": lambda path: flip_bit(path / "state.pt"),
    "first bit flipped": lambda path: flip_bit(path / "state.pt", 0),
    "last bit flipped": lambda path: flip_bit(path / "state.pt", -1),
    "4 KiB zeroed": lambda path: state_zeroed(path, 4096, 8192),
    "zero-filled": lambda path: state_zeroed(path, 0, 20_000),
    "empty": lambda path: os.truncate(path / "state.pt", 0),
    "of another step": lambda path: (path / "state.pt").write_bytes(state_of(200)),
    "no state": lambda path: (path / "state.pt").unlink(),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "nothing at all": lambda path: [file.unlink() for file in path.iterdir()],
    "manifest empty": lambda path: os.truncate(path / "manifest.json", 0),
    "manifest torn": lambda path: os.truncate(path / "manifest.json", 100),
    "manifest zero-filled": lambda path: (path / "manifest.json").write_bytes(bytes(500)),
    "manifest huge": lambda path: (path / "manifest.json").write_bytes(b" " * (2 << 20)),
    "manifest of another step": lambda path: edit_manifest(path, step=299),
    "manifest points outside": lambda path: edit_manifest(
        path, files={"../step-000000000200/state.pt": {"bytes": 20_000, "xxh3_128": "0"}}
    ),
    "manifest without state": lambda path: (
        (path / "other.pt").touch(),
        edit_manifest(path, files={"other.pt": {"bytes": 0, "xxh3_128": DIGEST_OF_NOTHING}}),
    ),
    "manifest names a missing file too": lambda path: edit_manifest(
        path,
        files=json.loads((path / "manifest.json").read_bytes())["files"]
        | {"more.pt": {"bytes": 1, "xxh3_128": "0"}},
    ),
    "state a link": lambda path: replace_by_link(path / "state.pt"),
    "state a directory": lambda path: replace_by_directory(path / "state.pt"),
    "manifest a directory": lambda path: replace_by_directory(path / "manifest.json"),
    "directory a link": replace_by_link,
    "directory a file": lambda path: (move_elsewhere(path), path.write_bytes(b"")),
    "directory a dangling link": lambda path: (
        move_elsewhere(path),
        path.symlink_to(path.parent / "missing"),
    ),
}
damaged = pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())


@damaged
def test_damaged_checkpoint_is_passed_over(store: Store, damage: Callable[[Path], object]) -> None:
    """The next older valid one is used; the damaged one is quarantined, reported, not deleted."""
    damage(path_of(store, 300))
    reported: list[CheckpointInvalidError] = []
    newest = reopened(store).newest_valid(reported.append)
    assert newest is not None
    assert newest.manifest.step == 200
    assert newest.state_file.read_bytes() == state_of(200)
    assert [error.path.name for error in reported] == ["step-000000000300"]
    (aside,) = store.quarantine_folder.entries()
    assert aside.name == "step-000000000300"
    assert names(store) == ["quarantine", "step-000000000100", "step-000000000200"]


@damaged
def test_damaged_checkpoint_never_verifies(store: Store, damage: Callable[[Path], object]) -> None:
    """Reading or verifying the directory by itself raises too, with a reason for people."""
    damage(path_of(store, 300))
    with pytest.raises(CheckpointInvalidError, match=r"^cannot trust .*step-000000000300: ."):
        verify(read_checkpoint(path_of(store, 300)))


def test_quarantine_keeps_bytes_and_reason(store: Store) -> None:
    """In quarantine a person finds the rest of the checkpoint, and why it was moved."""
    flip_bit(path_of(store, 300) / "state.pt")
    rest = (path_of(store, 300) / "state.pt").read_bytes()
    reopened(store).newest_valid()
    (aside,) = store.quarantine_folder.entries()
    assert (aside / "state.pt").read_bytes() == rest
    assert sorted(os.listdir(aside)) == ["manifest.json", "quarantine.json", "state.pt"]
    note = json.loads((aside / "quarantine.json").read_bytes())
    assert note["name"] == "step-000000000300"
    assert note["reason"] == "state.pt has changed: wrong digest"


def test_link_is_quarantined_without_its_target(store: Store) -> None:
    """Nothing outside the run is moved, written or deleted."""
    target = move_elsewhere(path_of(store, 300))
    path_of(store, 300).symlink_to(target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    reopened(store).newest_valid()
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_link_in_the_place_of_a_file_is_named(store: Store) -> None:
    """A person reads that the state is a link, not how many levels of them there are."""
    state = path_of(store, 300) / "state.pt"
    state.symlink_to(move_elsewhere(state))
    reported: list[CheckpointInvalidError] = []
    reopened(store).newest_valid(reported.append)
    assert [error.reason for error in reported] == ["state.pt is a symbolic link"]


def test_quarantine_replaces_no_entry_of_the_same_name(store: Store) -> None:
    """Entries that are in quarantine already stay as they are."""
    for _ in range(3):
        (path_of(store, 300) / "state.pt").write_bytes(b"")
        reopened(store).newest_valid()
        publish(reopened(store), 300).path.rename(path_of(store, 300))
    assert len(store.quarantine_folder.entries()) == 3


def test_several_damaged_checkpoints_are_passed_over(store: Store) -> None:
    """The search goes on to the oldest checkpoint."""
    for step in (200, 300):
        flip_bit(path_of(store, step) / "state.pt")
    newest = reopened(store).newest_valid()
    assert newest is not None
    assert newest.manifest.step == 100


def test_run_with_damaged_checkpoints_alone_does_not_start_from_zero(store: Store) -> None:
    """The next start, which finds them all in quarantine, refuses too and names them."""
    for step in (100, 200, 300):
        flip_bit(path_of(store, step) / "state.pt")
    for _ in range(2):
        with pytest.raises(NoValidCheckpointError, match=r"^cannot resume") as caught:
            reopened(store).newest_valid()
        for step in (100, 200, 300):
            assert f"{step:012d} is in quarantine" in str(caught.value)
    assert len(store.quarantine_folder.entries()) == 3


def test_checkpoint_of_another_run_is_not_used(store: Store) -> None:
    """It stays, since it is not damaged; alone, it keeps the run from starting."""
    publish(store, 400, run_id="another")
    newest = reopened(store).newest_valid()
    assert newest is not None
    assert newest.manifest.step == 300
    assert "step-000000000400" in names(store)
    for step in (100, 200, 300):
        shutil.rmtree(path_of(store, step))
    with pytest.raises(NoValidCheckpointError, match="step-000000000400 belongs to run another"):
        reopened(store).newest_valid()
    assert names(store) == ["step-000000000400"]


def test_non_finite_checkpoint_is_not_used(store: Store) -> None:
    """It stays for people to look at; alone, it keeps the run from starting."""
    publish(store, 400, healthy=False)
    newest = reopened(store).newest_valid()
    assert newest is not None
    assert newest.manifest.step == 300
    assert "step-000000000400" in names(store)
    for step in (100, 200, 300):
        shutil.rmtree(path_of(store, step))
    with pytest.raises(NoValidCheckpointError, match="step-000000000400 holds non-finite values"):
        reopened(store).newest_valid()


def test_verified_checkpoint_is_verified_again_before_resuming(store: Store) -> None:
    """An earlier verification is not enough to resume from, although no file time has changed."""
    assert store.newest_valid() is not None
    state = path_of(store, 300) / "state.pt"
    times = state.stat()
    flip_bit(state)
    os.utime(state, ns=(times.st_atime_ns, times.st_mtime_ns))
    newest = store.newest_valid()
    assert newest is not None
    assert newest.manifest.step == 200


@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
def test_pipe_in_the_place_of_a_file_does_not_block_verification(store: Store, name: str) -> None:
    """No process ever writes to it: verification reports it instead of waiting."""
    pipe = path_of(store, 300) / name
    pipe.unlink()
    os.mkfifo(pipe)
    found: list[Checkpoint | None] = []
    thread = threading.Thread(
        target=lambda: found.append(reopened(store).newest_valid()), daemon=True
    )
    thread.start()
    thread.join(DEADLINE_SECONDS / 4)
    hangs = thread.is_alive()
    while thread.is_alive():
        # A writer that goes at once lets the reader go on to its end.
        for fifo in (pipe, *store.run.quarantine.glob(f"*/{name}")):
            if fifo.exists():
                os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))
        thread.join(0.05)
    assert not hangs
    assert found[0] is not None
    assert found[0].manifest.step == 200


# --- the identity of the run ---------------------------------------------------------------------


def test_lost_run_file_is_written_again(store: Store) -> None:
    """Without run.json the checkpoints tell the run's id, so they are still used."""
    (path_of(store, 300) / "manifest.json").unlink()
    again = Store.open(store.run, ["python", "train.py"])
    assert again.run_id == RUN_ID
    newest = again.newest_valid()
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
    store.newest_valid()
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


def test_run_with_an_unreadable_checkpoint_does_not_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older checkpoint is not used instead: that would lose steps to a passing fault."""
    store = new_store(tmp_path / "run", (100, 200))
    stale = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    real_open = os.open

    def refuse(path: str | Path, *arguments: int, **keywords: int) -> int:
        if Path(path).name == "state.pt":
            raise stale
        return real_open(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UnreadableError, match="fix this and run again"):
        store.newest_valid()
    with pytest.raises(UnreadableError):
        store.apply_retention(KEEP_TWO)
    assert len(store.directories()) == 2


@pytest.mark.parametrize(
    "name", ["step-1000000000000", "step-1000000000000-2", "step-0000000000007"]
)
def test_name_that_looks_like_a_checkpoint_prevents_a_silent_start(
    tmp_path: Path, name: str
) -> None:
    """A run does not begin at zero beside something that looks like a checkpoint."""
    store = new_store(tmp_path / "run", (7,))
    path_of(store, 7).rename(store.run.checkpoints / name)
    with pytest.raises(NoValidCheckpointError, match=f"{name} has more digits"):
        store.newest_valid()
    publish(store, 8)
    assert store.newest_valid() is not None
    assert store.unrecognised() == [f"{name} has more digits than the name of a checkpoint"]
