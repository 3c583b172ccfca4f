"""The digest of a file is that of its bytes, however it is read."""

from pathlib import Path

import pytest
import xxhash

from orchestrator.checkpoint import verification
from orchestrator.checkpoint.verification import digest_of


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
