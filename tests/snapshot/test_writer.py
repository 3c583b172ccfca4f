"""Snapshots become checkpoints: how they are written, and what a failing disk costs."""

import ctypes
import errno
import fcntl
import gc
import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import verify
from orchestrator.errors import CheckpointWriteError
from orchestrator.snapshot.slots import Slots
from orchestrator.snapshot.writer import CHUNK_BYTES, Writer
from orchestrator.system.direct_file import DirectFile
from orchestrator.system.durable import Disk
from orchestrator.system.heartbeat import Heartbeat
from tests.checkpoint.support import names, new_store
from tests.snapshot.support import snapshot_of, write
from tests.support import FailingDisk, full_disk, input_output_error


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, CHUNK_BYTES, CHUNK_BYTES + 5000])
def test_image_becomes_the_state_file(tmp_path: Path, slots: Slots, size: int) -> None:
    """The file has exactly the bytes of the image, whatever its length."""
    store = new_store(tmp_path)
    snapshot = snapshot_of(slots, 7, size)
    checkpoint = write(Writer(store), snapshot, Reason.CRASH)
    verify(checkpoint)
    assert checkpoint.state_file.read_bytes() == random.Random(7).randbytes(size)
    assert checkpoint.manifest.reason is Reason.CRASH
    assert checkpoint.manifest.step == 7


def test_checkpoint_has_the_digest_of_the_batch_that_followed(tmp_path: Path, slots: Slots) -> None:
    """A note that was left beside the snapshot is found on the disk too."""
    slots.note_first_batch(snapshot_of(slots, 7, 100).slot, 0xABC)
    checkpoint = write(Writer(new_store(tmp_path)), slots.snapshots()[0], Reason.CRASH)
    verify(checkpoint)
    assert checkpoint.manifest.digests["first_batch"] == "0000000000000abc"


def test_write_has_the_image_of_that_moment(tmp_path: Path, slots: Slots) -> None:
    """A slot whose image grows, shrinks and changes is written as it is each time."""
    writer = Writer(new_store(tmp_path))
    for step, size in ((1, 5000), (3, 4 * CHUNK_BYTES), (5, 100), (7, 4 * CHUNK_BYTES)):
        checkpoint = write(writer, snapshot_of(slots, step, size), Reason.PERIODIC)
        verify(checkpoint)
        assert checkpoint.state_file.read_bytes() == random.Random(step).randbytes(size)


def test_slot_that_is_shorter_than_its_image_is_refused(tmp_path: Path, slots: Slots) -> None:
    """A failing trainer that truncated its slot ends the write, not the writing process."""
    writer = Writer(new_store(tmp_path))
    snapshot = snapshot_of(slots, 1, 3 * CHUNK_BYTES)
    write(writer, snapshot, Reason.PERIODIC)
    os.ftruncate(snapshot.descriptor, CHUNK_BYTES)
    with pytest.raises(CheckpointWriteError, match="shorter than its image"):
        write(writer, snapshot, Reason.CRASH)
    os.ftruncate(snapshot.descriptor, 3 * CHUNK_BYTES)
    write(writer, snapshot, Reason.CRASH)


def test_slot_that_shrinks_during_a_write_is_refused(tmp_path: Path, slots: Slots) -> None:
    """A trainer that truncates its slot while it is written cannot kill the writing process."""
    store = new_store(tmp_path)
    snapshot = snapshot_of(slots, 1, 3 * CHUNK_BYTES)

    class Truncating(Heartbeat):
        def beat(self) -> None:
            super().beat()
            os.ftruncate(snapshot.descriptor, CHUNK_BYTES + 1)

    with pytest.raises(CheckpointWriteError, match="shorter than its image"):
        write(Writer(store, Truncating()), snapshot, Reason.CRASH)
    assert store.directories() == []


def test_state_file_is_written_past_the_page_cache(tmp_path: Path) -> None:
    """On a filesystem that has O_DIRECT the flag is set until the last piece."""
    file = DirectFile(tmp_path / "file")

    def is_direct() -> bool:
        return bool(fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_DIRECT)

    if not is_direct():
        pytest.skip("this filesystem has no O_DIRECT")
    with open("/dev/zero", "rb") as zeros, file:
        aligned = memoryview(bytearray(3 * 4096))
        start = -aligned_address(aligned) % 4096
        zeros.readinto(aligned)
        assert file.write(aligned[start : start + 4096]) == 4096
        assert is_direct()
        assert file.write(aligned[start : start + 100]) == 100
        assert not is_direct()
    assert (tmp_path / "file").stat().st_size == 4196


def aligned_address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def test_unaligned_memory_is_written_completely(tmp_path: Path) -> None:
    """A write that O_DIRECT refuses is buffered instead, and no byte is missing."""
    data = random.Random(1).randbytes(3 * 4096 + 1)
    with DirectFile(tmp_path / "file") as file:
        # Begins in the middle of a block of memory, which the kernel answers with EINVAL.
        assert file.write(memoryview(data)[1:]) == len(data) - 1
        Disk().sync(file)
    assert (tmp_path / "file").read_bytes() == data[1:]


@pytest.mark.parametrize("fault", [full_disk, input_output_error])
def test_write_that_fails_at_any_operation_leaves_nothing(
    tmp_path: Path, slots: Slots, fault: object
) -> None:
    """Whichever operation fails, no half-written file stays and the next write works."""
    snapshot = snapshot_of(slots, 400, 3 * 4096 + 5)
    for number in range(1, 40):
        disk = FailingDisk(number, fault)  # type: ignore[arg-type]
        root = tmp_path / str(number)
        store = new_store(root, steps=(100, 200))
        failing = Store(store.run, store.run_id, disk)
        try:
            write(Writer(failing), snapshot, Reason.PERIODIC)
        except CheckpointWriteError:
            remaining = [name for name in names(store) if name != "step-000000000400"]
            assert remaining == ["step-000000000100", "step-000000000200"]
            for checkpoint in store.all():
                verify(checkpoint)
            verify(write(Writer(store), snapshot, Reason.PERIODIC))
            continue
        assert number > 8, "fewer operations than a publish has"
        return
    pytest.fail("the write never passed without a fault")


def test_write_error_names_its_cause(tmp_path: Path, slots: Slots) -> None:
    """The error of a failed write carries the system's reason."""
    store = new_store(tmp_path)
    failing = Store(store.run, store.run_id, FailingDisk(3, input_output_error))
    with pytest.raises(CheckpointWriteError) as caught:
        write(Writer(failing), snapshot_of(slots, 1, 10_000), Reason.PERIODIC)
    assert caught.value.cause.errno == errno.EIO


def mapped_slots() -> int:
    """How often this process has mapped the memory of a slot."""
    return Path("/proc/self/maps").read_text().count("orchestrator-slot")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse to make a file longer than this."""
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, earlier[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mappings are seen in /proc")
@pytest.mark.parametrize("failing", ["directory", "first write", "second write", "file size"])
def test_failed_write_leaves_no_image_mapped(tmp_path: Path, slots: Slots, failing: str) -> None:
    """After a failed write the memory of a slot is not mapped, though its error is still held."""
    size, errors, before = 2 * CHUNK_BYTES, [], mapped_slots()
    gc.disable()
    try:
        for step in range(4):
            fail_at = {"directory": 1, "first write": 3, "second write": 4}.get(failing)
            store = new_store(tmp_path, disk=Disk() if fail_at is None else FailingDisk(fail_at))
            limit = CHUNK_BYTES + 4096 if fail_at is None else 1 << 40
            snapshot = snapshot_of(slots, step, size)
            with files_of_at_most(limit), pytest.raises(CheckpointWriteError) as caught:
                write(Writer(store), snapshot, Reason.PERIODIC)
            errors.append(caught.value)
        assert mapped_slots() == before
    finally:
        gc.enable()
