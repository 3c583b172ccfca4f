"""Whether an HDF5 file is whole, from files that h5py has written."""

import base64
import struct
import zlib
from pathlib import Path

import pytest

from orchestrator.adopt.file_check import IncompleteError, shows_whole

# h5py.File(name, "w", libver=...).create_dataset("weights", data=numpy.arange(40.0))
WRITTEN = {
    "earliest": (
        "c-rmNu}Z^09LMqhU0R40p#_H`4nahUh*XWWRco%ckxVM;;OHXitl;Wc-=vS?<M;-#=Y3C1R~OOzmQVioKQ4j%LteAd"
        "$wF<ZCN^Ox6{*Yj<iyMsYu~>?g=3s(zpg%eP1YNnKfCYhB2De?d?x-r?TRy$GXF7IIykppQ~N1>)5U$yw-0ysPmf>o"
        "nEmj+N~-QG<!d*|O1Xs=`@F%lZ##`BVOEXA^AhKQ>sP0%wy(8TZl2wFf%2nmRPhPMzv?|)o}P{D7wx~pC@5#MOqsut"
        "_k;_>-xlk*h)rC^2v=|w*RX}_xPhD4#x2~&9gJ}oJGh5k?BPBh;34+$2op5U7nA`t$}u&{ka}o70Q^%#*#"
    ),
    "latest": (
        "c-rmHO-jR16o%pN<f6uipb|<c4vL7BB2sOv|K{2j=}d45f`0=?3OaP^8eD@QxCxiz3ar7r0p~gq?mKyMa+7fKG#Vby"
        "CXK|!v8u-8r^~s+{pZ?6bTS&AMtX=Aem+>0L^5fzI5SP%pI={I-QB)bU+wD;`fN8|zE?1rrBY;OEzT-kDw}WSDu2i;"
        "n^87)(nPVHOX6ZXXB^5KFTLvDbyGikS11$;g+jmYBj>`G#5jj3)^QP=xP;5Nf-P+0Dz0G%*Kq^8nBgY&a0|C_2X}D~"
        "_wfJ^F-Kqeh&p0M^_fuv=7IkL9)dk_"
    ),
}
END_AT = {"earliest": 40, "latest": 28}


def content_of(version: str) -> bytes:
    return zlib.decompress(base64.b85decode(WRITTEN[version]))


def is_whole(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    return shows_whole(path, len(content))


@pytest.mark.parametrize("version", WRITTEN)
@pytest.mark.parametrize("name", ["latest.weights.h5", "data.hdf5", "state"])
def test_file_that_was_closed_is_whole(tmp_path: Path, version: str, name: str) -> None:
    """A file that was closed is whole, whatever its name."""
    assert is_whole(tmp_path / name, content_of(version))


@pytest.mark.parametrize("version", WRITTEN)
def test_file_that_was_cut_is_incomplete(tmp_path: Path, version: str) -> None:
    """A file that was cut anywhere is incomplete, and so is one that is longer than it says."""
    content = content_of(version)
    for size in (0, 4, 8, 50, 95, 96, len(content) // 2, len(content) - 1):
        with pytest.raises(IncompleteError):
            is_whole(tmp_path / "m.h5", content[:size])
    with pytest.raises(IncompleteError, match="bytes, not 2368"):
        is_whole(tmp_path / "m.h5", content + b"more")


@pytest.mark.parametrize("version", WRITTEN)
def test_file_that_is_being_written_is_incomplete(tmp_path: Path, version: str) -> None:
    """Data of which the superblock does not know yet, or without one, is no whole file."""
    content = bytearray(content_of(version))
    struct.pack_into("<Q", content, END_AT[version], 2048)
    with pytest.raises(IncompleteError, match="has 2368 bytes, not 2048"):
        is_whole(tmp_path / "m.h5", bytes(content))
    content[:96] = bytes(96)
    with pytest.raises(IncompleteError, match="has no superblock"):
        is_whole(tmp_path / "m.h5", bytes(content))


def test_file_that_was_flushed_and_not_closed_is_incomplete(tmp_path: Path) -> None:
    """Version 3 has a flag while a program has the file open for writing."""
    content = bytearray(content_of("latest"))
    content[8] = 3
    content[11] = 1
    with pytest.raises(IncompleteError, match="was not closed"):
        is_whole(tmp_path / "m.h5", bytes(content))


def test_superblock_may_follow_a_user_block(tmp_path: Path) -> None:
    """A file that begins with 512, 1024 or more bytes of another program is read as well."""
    for block in (512, 1024, 4096):
        content = bytearray(content_of("earliest"))
        struct.pack_into("<QQQ", content, 24, block, 2**64 - 1, block + len(content))
        assert is_whole(tmp_path / "m.h5", bytes(block) + content)
        with pytest.raises(IncompleteError):
            is_whole(tmp_path / "m.h5", bytes(block) + content[:-1])


def test_version_that_is_not_known_proves_nothing(tmp_path: Path) -> None:
    """A superblock of a later version, or with short addresses, is not judged."""
    for place, value in ((8, 7), (13, 4)):
        content = bytearray(content_of("earliest"))
        content[place] = value
        assert not is_whole(tmp_path / "m.h5", bytes(content))
