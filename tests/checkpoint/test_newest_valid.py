"""The choice of what to resume from: what is damaged is never trusted, nor is a run begun anew."""

import dataclasses
import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.checkpoint.adopted import Adopted
from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.disposal import FilesOfAnyRun
from orchestrator.checkpoint.newest_valid import newest_valid
from orchestrator.checkpoint.retention import RetentionPolicy
from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointInvalidError, NoValidCheckpointError, UnreadableError
from tests.checkpoint.damage import damaged, flip_bit, move_elsewhere
from tests.checkpoint.support import names, new_store, path_of, publish, reopened, state_of
from tests.support import DEADLINE_SECONDS

KEEP_TWO = RetentionPolicy(keep=2)


def test_run_without_checkpoints_starts_from_zero(empty: Store) -> None:
    """Without candidates and with an empty quarantine there is no checkpoint to resume from."""
    assert newest_valid(empty) is None
    shutil.rmtree(empty.run.checkpoints)
    assert newest_valid(empty) is None


def test_other_files_are_no_checkpoints(empty: Store) -> None:
    """Entries that are not named like a checkpoint are neither used nor touched."""
    others = ["notes.txt", "step-7", "step-000000000007.bak", ".writing-abc", "xstep-000000000007"]
    for name in others:
        (empty.run.checkpoints / name).mkdir()
    assert newest_valid(empty) is None
    assert names(empty) == sorted(others)


@damaged
def test_damaged_checkpoint_is_passed_over(store: Store, damage: Callable[[Path], object]) -> None:
    """The next older valid one is used; the damaged one is quarantined, reported, not deleted."""
    damage(path_of(store, 300))
    reported: list[CheckpointInvalidError] = []
    newest = newest_valid(reopened(store), reported.append)
    assert newest is not None
    assert newest.manifest.step == 200
    assert newest.state_file.read_bytes() == state_of(200)
    assert [error.path.name for error in reported] == ["step-000000000300"]
    (aside,) = store.quarantine_folder.entries()
    assert aside.name == "step-000000000300"
    assert names(store) == ["quarantine", "step-000000000100", "step-000000000200"]


def test_files_of_a_script_are_not_resumed_from_by_a_session(store: Store, tmp_path: Path) -> None:
    """A manifest that names a file elsewhere counts for nothing, and an older one is used."""
    shutil.copytree(path_of(store, 300), tmp_path / "elsewhere")
    manifest_file = path_of(store, 300) / "manifest.json"
    manifest = json.loads(manifest_file.read_text())
    adopted = Adopted(str(tmp_path / "elsewhere/state.pt"), False, False, True, False, {})
    manifest["adopted"] = dataclasses.asdict(adopted) | {"modified_ns": {"state.pt": 1}}
    manifest["adopted"].pop("members")
    manifest_file.write_text(json.dumps(manifest))
    newest = newest_valid(reopened(store))
    assert newest is not None
    assert newest.manifest.step == 200
    assert [checkpoint.manifest.step for checkpoint in reopened(store).all()] == [100, 200]
    shown = Store(store.run, store.run_id, disposal=FilesOfAnyRun())
    assert [checkpoint.manifest.step for checkpoint in shown.all()] == [100, 200, 300]


def test_quarantine_keeps_bytes_and_reason(store: Store) -> None:
    """In quarantine a person finds the rest of the checkpoint, and why it was moved."""
    flip_bit(path_of(store, 300) / "state.pt")
    rest = (path_of(store, 300) / "state.pt").read_bytes()
    newest_valid(reopened(store))
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
    newest_valid(reopened(store))
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_link_in_the_place_of_a_file_is_named(store: Store) -> None:
    """A person reads that the state is a link, not how many levels of them there are."""
    state = path_of(store, 300) / "state.pt"
    state.symlink_to(move_elsewhere(state))
    reported: list[CheckpointInvalidError] = []
    newest_valid(reopened(store), reported.append)
    assert [error.reason for error in reported] == ["state.pt is a symbolic link"]


def test_quarantine_replaces_no_entry_of_the_same_name(store: Store) -> None:
    """Entries that are in quarantine already stay as they are."""
    for _ in range(3):
        (path_of(store, 300) / "state.pt").write_bytes(b"")
        newest_valid(reopened(store))
        publish(reopened(store), 300).path.rename(path_of(store, 300))
    assert len(store.quarantine_folder.entries()) == 3


def test_several_damaged_checkpoints_are_passed_over(store: Store) -> None:
    """The search goes on to the oldest checkpoint."""
    for step in (200, 300):
        flip_bit(path_of(store, step) / "state.pt")
    newest = newest_valid(reopened(store))
    assert newest is not None
    assert newest.manifest.step == 100


def test_run_with_damaged_checkpoints_alone_does_not_start_from_zero(store: Store) -> None:
    """The next start, which finds them all in quarantine, refuses too and names them."""
    for step in (100, 200, 300):
        flip_bit(path_of(store, step) / "state.pt")
    for _ in range(2):
        with pytest.raises(NoValidCheckpointError, match=r"^cannot resume") as caught:
            newest_valid(reopened(store))
        for step in (100, 200, 300):
            assert f"{step:012d} is in quarantine" in str(caught.value)
    assert len(store.quarantine_folder.entries()) == 3


def test_checkpoint_of_another_run_is_not_used(store: Store) -> None:
    """It stays, since it is not damaged; alone, it keeps the run from starting."""
    publish(store, 400, run_id="another")
    newest = newest_valid(reopened(store))
    assert newest is not None
    assert newest.manifest.step == 300
    assert "step-000000000400" in names(store)
    for step in (100, 200, 300):
        shutil.rmtree(path_of(store, step))
    with pytest.raises(NoValidCheckpointError, match="step-000000000400 belongs to run another"):
        newest_valid(reopened(store))
    assert names(store) == ["step-000000000400"]


def test_non_finite_checkpoint_is_not_used(store: Store) -> None:
    """It stays for people to look at; alone, it keeps the run from starting."""
    publish(store, 400, healthy=False)
    newest = newest_valid(reopened(store))
    assert newest is not None
    assert newest.manifest.step == 300
    assert "step-000000000400" in names(store)
    for step in (100, 200, 300):
        shutil.rmtree(path_of(store, step))
    with pytest.raises(NoValidCheckpointError, match="step-000000000400 holds non-finite values"):
        newest_valid(reopened(store))


def test_verified_checkpoint_is_verified_again_before_resuming(store: Store) -> None:
    """An earlier verification is not enough to resume from, although no file time has changed."""
    assert newest_valid(store) is not None
    state = path_of(store, 300) / "state.pt"
    times = state.stat()
    flip_bit(state)
    os.utime(state, ns=(times.st_atime_ns, times.st_mtime_ns))
    newest = newest_valid(store)
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
        target=lambda: found.append(newest_valid(reopened(store))), daemon=True
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
        newest_valid(store)
    with pytest.raises(UnreadableError):
        store.apply_retention(KEEP_TWO)
    assert len(store.directories()) == 2


@pytest.mark.parametrize(
    "name",
    [
        *("step-1000000000000", "step-1000000000000-2", "step-0000000000007"),
        f"step-000000000007-{'9' * 237}",
    ],
)
def test_name_that_looks_like_a_checkpoint_prevents_a_silent_start(
    tmp_path: Path, name: str
) -> None:
    """A run does not begin at zero beside something that looks like a checkpoint."""
    store = new_store(tmp_path / "run", (7,))
    path_of(store, 7).rename(store.run.checkpoints / name)
    with pytest.raises(NoValidCheckpointError, match=f"{name} has more digits"):
        newest_valid(store)
    publish(store, 8)
    assert newest_valid(store) is not None
    assert store.unrecognised() == [f"{name} has more digits than the name of a checkpoint"]
