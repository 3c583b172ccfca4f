"""What is published is durable, found again and whole; a write that fails leaves nothing."""

import json
import os
import threading
from pathlib import Path

import pytest

from orchestrator.checkpoint.checkpoint import read_checkpoint
from orchestrator.checkpoint.digesting_writer import BESIDE_BYTES, DigestingWriter
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.newest_valid import newest_valid
from orchestrator.checkpoint.publication import publish_state
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import verify
from orchestrator.errors import CheckpointInvalidError, CheckpointWriteError
from tests.checkpoint.support import (
    manifest_of,
    names,
    new_store,
    path_of,
    publish,
    reopened,
    state_of,
)
from tests.support import FailingDisk


def test_published_checkpoint_is_found(empty: Store) -> None:
    """The newest checkpoint has the bytes, the facts and the name that it was published with."""
    made = publish(empty, 1200, epoch=3, reason=Reason.REQUESTED, metrics={"loss": 0.5})
    found = newest_valid(reopened(empty))
    assert found == made
    assert found.path == empty.run.checkpoints / "step-000000001200"
    assert found.state_file.read_bytes() == state_of(1200)
    manifest = found.manifest
    assert (manifest.step, manifest.epoch, manifest.reason) == (1200, 3, "requested")
    assert manifest.files["state.pt"].bytes == len(state_of(1200))
    assert sorted(os.listdir(found.path)) == ["manifest.json", "state.pt"]
    assert names(empty) == ["step-000000001200"]


def test_publish_writes_in_the_order_of_the_format(tmp_path: Path) -> None:
    """State, its sync, manifest, its sync, directory, rename, parent: in this order."""
    store = new_store(tmp_path / "run", disk=FailingDisk(log=tmp_path / "log"))
    publish(store, 7)
    operations = [json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    top = str(store.run.checkpoints)
    temporary = operations[0][1]
    assert Path(temporary).name.startswith(".writing-")
    assert [operation[:2] for operation in operations if operation[0] != "write"] == [
        ["make_directory", temporary],
        ["create", f"{temporary}/state.pt"],
        ["sync", f"{temporary}/state.pt"],
        ["create", f"{temporary}/manifest.json"],
        ["sync", f"{temporary}/manifest.json"],
        ["sync_directory", temporary],
        ["rename", temporary],
        ["sync_directory", top],
    ]


def test_second_checkpoint_of_a_step_gets_a_suffix(empty: Store) -> None:
    """A directory is never reused; of several checkpoints of one step the last is the newest."""
    made = [publish(empty, 7, epoch=number) for number in range(11)]
    assert [checkpoint.name for checkpoint in made[:3]] == [
        "step-000000000007",
        "step-000000000007-2",
        "step-000000000007-3",
    ]
    assert [c.manifest.epoch for c in reopened(empty).all()] == list(range(11))
    newest = newest_valid(reopened(empty))
    assert newest is not None
    assert newest.name == "step-000000000007-11"


def test_name_of_a_quarantined_checkpoint_is_not_reused(store: Store) -> None:
    """The journal and people know a checkpoint by its name: one name is one checkpoint."""
    store.quarantine(path_of(store, 300), "it is suspect")
    assert publish(store, 300).name != "step-000000000300"


def test_failed_publish_leaves_nothing(tmp_path: Path) -> None:
    """A write that fails names the step and the system's reason, and cleans up."""
    store = new_store(tmp_path / "run", (100,), FailingDisk())
    store.disk = FailingDisk(4)
    with pytest.raises(CheckpointWriteError, match=r"^cannot save .*step 200: No space left"):
        publish(store, 200)
    assert names(store) == ["step-000000000100"]


def test_file_in_the_place_of_the_checkpoints_is_a_failed_write(empty: Store) -> None:
    """It fails the write like a full disk, and the training goes on."""
    empty.run.checkpoints.rmdir()
    empty.run.checkpoints.touch()
    with pytest.raises(CheckpointWriteError, match="step 200: File exists"):
        publish(empty, 200)


def test_state_that_cannot_be_serialized_leaves_nothing(store: Store) -> None:
    """The serializer's exception passes through, and no file of the checkpoint stays."""

    def fail(file: DigestingWriter) -> None:
        file.write(b"half")
        raise ValueError("this object cannot be pickled")

    with pytest.raises(ValueError, match="cannot be pickled"):
        publish_state(store, manifest_of(400), fail)
    assert len(names(store)) == 3


def test_disk_error_is_reported_although_the_serializer_hides_it(tmp_path: Path) -> None:
    """torch.save turns a full disk into a RuntimeError: the error still names the full disk."""
    store = new_store(tmp_path / "run", disk=FailingDisk(3))

    def hide(file: DigestingWriter) -> None:
        try:
            file.write(b"state")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0") from None

    with pytest.raises(CheckpointWriteError, match="No space left"):
        publish_state(store, manifest_of(1), hide)
    assert names(store) == []


def test_large_piece_is_digested_without_a_thread(
    empty: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system allows no more threads, a checkpoint takes longer and is as good."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    state = os.urandom(BESIDE_BYTES)
    checkpoint = publish_state(empty, manifest_of(1), lambda file: file.write(state))
    verify(checkpoint)


@pytest.mark.parametrize("kind", ["B", "d"])
def test_memory_of_any_item_size_is_counted_in_bytes(empty: Store, kind: str) -> None:
    """A view of floats counts with the length of its bytes, so that the file verifies."""
    view = memoryview(state_of(1)).cast(kind)
    made = publish_state(empty, manifest_of(1), lambda file: file.write(view))
    assert made.manifest.files["state.pt"].bytes == view.nbytes
    verify(made)


@pytest.mark.parametrize("step", [10**12, 10**13, 2**63])
def test_step_that_no_name_holds_is_refused(tmp_path: Path, step: int) -> None:
    """A step of more than twelve digits is not published, and no manifest that has one is valid."""
    store = new_store(tmp_path / "run")
    with pytest.raises(CheckpointWriteError, match="no step above 999999999999"):
        publish(store, step)
    assert list(store.run.checkpoints.iterdir()) == []
    last = publish(store, 10**12 - 1)
    assert newest_valid(reopened(store)) == last
    manifest = last.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("999999999999", str(step)))
    with pytest.raises(CheckpointInvalidError, match="the most is 999999999999"):
        read_checkpoint(last.path)
