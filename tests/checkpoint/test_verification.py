"""The digest of a file is that of its bytes, however it is read; what is damaged never verifies."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from orchestrator.checkpoint import verification
from orchestrator.checkpoint.checkpoint import read_checkpoint
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import digest_of, verify
from orchestrator.errors import CheckpointInvalidError
from orchestrator.rundir.paths import RunDir
from tests.checkpoint.damage import damaged
from tests.checkpoint.support import path_of, publish


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


@damaged
def test_damaged_checkpoint_never_verifies(store: Store, damage: Callable[[Path], object]) -> None:
    """Reading or verifying the directory by itself raises too, with a reason for people."""
    damage(path_of(store, 300))
    with pytest.raises(CheckpointInvalidError, match=r"^cannot trust .*step-000000000300: ."):
        verify(read_checkpoint(path_of(store, 300)))
