"""The digest of a file is that of its bytes, however it is read; what is damaged never verifies."""

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from orchestrator.checkpoint import verification
from orchestrator.checkpoint.checkpoint import Checkpoint, read_checkpoint
from orchestrator.checkpoint.newest_valid import newest_valid
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import digest_of, export_state, verify
from orchestrator.errors import CheckpointInvalidError
from orchestrator.rundir.paths import RunDir
from tests.checkpoint.damage import damaged, edit_manifest
from tests.checkpoint.support import new_store, path_of, publish
from tests.system.opens import not_opened


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "cached"])
@pytest.mark.parametrize("chunk_bytes", [4096, 8192, 16 << 20])
def test_digest_covers_all_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, direct: bool
) -> None:
    """Files of no, some and whole blocks are digested completely, in one piece or several."""
    monkeypatch.setattr(verification, "READ_CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(verification, "CACHED_CHUNK_BYTES", chunk_bytes)
    file = tmp_path / "file"
    for size in (0, 1, 4095, 4096, 4097, 8192, 20000):
        content = bytes(n % 251 for n in range(size))
        file.write_bytes(content)
        record = digest_of(file, direct=direct)
        assert (record.bytes, record.xxh3_128) == (size, xxhash.xxh3_128(content).hexdigest())


@pytest.mark.parametrize("to_load", [True, False])
def test_file_of_another_size_is_refused_unread(tmp_path: Path, to_load: bool) -> None:
    """A file of holes as large as the filesystem allows is refused at once."""
    run = RunDir(tmp_path / "run")
    run.create()
    checkpoint = publish(Store.open(run, command=["train"]), 1)
    os.truncate(checkpoint.state_file, 1 << 42)
    with pytest.raises(CheckpointInvalidError, match="has 4398046511104 bytes, not"):
        verify(checkpoint, to_load=to_load)


@pytest.fixture
def hollow(tmp_path: Path) -> Checkpoint:
    """A checkpoint whose state is a hole of terabytes, as its manifest says."""
    store = new_store(tmp_path / "run", [1, 2])
    path, size = path_of(store, 2), 15 << 40
    try:
        os.truncate(path / "state.pt", size)
    except OSError:
        pytest.skip("no file of this size here")
    edit_manifest(path, files={"state.pt": {"bytes": size, "xxh3_128": "0" * 32}})
    return read_checkpoint(path)


@pytest.mark.parametrize("to_load", [True, False])
def test_file_of_holes_is_refused_unread(hollow: Checkpoint, to_load: bool) -> None:
    """A manifest that agrees with a file without content keeps no process busy."""
    with pytest.raises(CheckpointInvalidError, match=r"state\.pt is mostly holes"):
        verify(hollow, to_load=to_load)


def test_file_of_holes_is_neither_resumed_from_nor_exported(
    hollow: Checkpoint, tmp_path: Path
) -> None:
    """A start goes on to the checkpoint before it, and an export makes no file."""
    with pytest.raises(CheckpointInvalidError, match=r"state\.pt is mostly holes"):
        export_state(hollow, tmp_path / "exported")
    newest = newest_valid(Store(RunDir(tmp_path / "run"), hollow.manifest.run_id))
    assert newest is not None
    assert newest.manifest.step == 1
    assert os.listdir(tmp_path) == ["run"]


def test_file_without_blocks_and_without_holes_is_read(
    hollow: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was moved to tapes is in no block; to read it brings it back."""
    monkeypatch.setattr(os, "lseek", lambda descriptor, offset, whence: 15 << 40)
    monkeypatch.setattr(mmap, "mmap", _reached)
    with pytest.raises(_ReadError):
        verify(hollow)


class _ReadError(Exception):
    """The first byte would have been read."""


def _reached(descriptor: int, length: int) -> None:
    raise _ReadError


@pytest.mark.skipif(not os.path.exists("/proc/self/pagemap"), reason="of Linux")
@pytest.mark.parametrize("direct", [True, False])
def test_file_of_the_kernels_is_not_read(direct: bool) -> None:
    """A file that says it is empty may have a word for each page that there could be."""
    assert digest_of(Path("/proc/self/pagemap"), direct=direct).bytes == 0


@pytest.mark.parametrize("direct", [True, False])
def test_file_that_grows_is_given_up(tmp_path: Path, direct: bool) -> None:
    """A file is read to the length that it had, however fast another process writes to it."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 10)

    def grow(descriptor: int) -> None:
        os.truncate(file, 1 << 42)

    with pytest.raises(OSError, match="it has grown"):
        digest_of(file, direct=direct, check=grow)


@pytest.mark.parametrize("direct", [True, False])
def test_fifo_in_the_place_of_a_file_is_not_opened(tmp_path: Path, direct: bool) -> None:
    """A process that writes to it would be ended by the look."""
    os.mkfifo(tmp_path / "fifo")
    with not_opened(tmp_path / "fifo"), pytest.raises(OSError, match="not a regular file"):
        digest_of(tmp_path / "fifo", direct=direct)


@damaged
def test_damaged_checkpoint_never_verifies(store: Store, damage: Callable[[Path], object]) -> None:
    """Reading or verifying the directory by itself raises too, with a reason for people."""
    damage(path_of(store, 300))
    with pytest.raises(CheckpointInvalidError, match=r"^cannot trust .*step-000000000300: ."):
        verify(read_checkpoint(path_of(store, 300)))
