"""A last save on a full disk takes the space in reserve, and nothing else does."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.verification import verify
from orchestrator.errors import CheckpointWriteError
from orchestrator.snapshot.slots import Slots
from orchestrator.snapshot.writer import Writer
from tests.checkpoint.support import names, new_store
from tests.snapshot.support import snapshot_of, write


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 4 MiB."""
    mount_point = tmp_path / "small"
    mount_point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount_point]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
    yield mount_point
    subprocess.run(["umount", "--lazy", mount_point], check=True)


def fill(mount_point: Path) -> None:
    with open(mount_point / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def test_emergency_uses_the_reserve_and_a_periodic_write_does_not(
    small_disk: Path, slots: Slots
) -> None:
    """On a full disk a periodic write fails and leaves the reserve to the stop that may come."""
    store = new_store(small_disk / "run")
    writer = Writer(store)
    write(writer, snapshot_of(slots, 1, 500_000), Reason.PERIODIC)
    assert store.run.reserve_file.stat().st_size >= 500_000
    fill(small_disk)
    with pytest.raises(CheckpointWriteError, match="No space left"):
        write(writer, snapshot_of(slots, 2, 500_000), Reason.PERIODIC)
    assert store.run.reserve_file.exists()
    checkpoint = write(writer, snapshot_of(slots, 3, 500_000), Reason.EMERGENCY)
    verify(checkpoint)
    assert not store.run.reserve_file.exists()
    assert names(store) == ["step-000000000001", "step-000000000003"]


def test_reserve_is_not_taken_from_a_nearly_full_disk(small_disk: Path, slots: Slots) -> None:
    """Space is reserved only where as much again is left."""
    store = new_store(small_disk / "run")
    write(Writer(store), snapshot_of(slots, 1, 2_000_000), Reason.PERIODIC)
    assert not store.run.reserve_file.exists()
