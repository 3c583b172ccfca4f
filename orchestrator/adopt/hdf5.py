"""Checks that an HDF5 file (Keras's ``.h5``, h5py, PyTables) is whole, by its superblock alone."""

import struct
from typing import BinaryIO

MAGIC = b"\x89HDF\r\n\x1a\n"
SUFFIXES = {".h5", ".hdf5"}
_FIRST_USER_BLOCK = 512
_ADDRESSES_AT = {0: 24, 1: 28, 2: 12, 3: 12}
_ADDRESS_BYTES = 8
_LONGEST_SUPERBLOCK_BYTES = 96
_SHORTEST_SUPERBLOCK_BYTES = 48
_OPEN_FOR_WRITING = 1


def problem_of(file: BinaryIO, size: int) -> str | None:
    """Return why the file is not whole, None if it is. Raises ValueError where nothing tells.

    The library writes the superblock when it flushes or closes the file, after all else. Its end
    address is then the length of the file; in version 3 a flag tells that it was not closed.
    """
    superblock = _superblock(file, size)
    if superblock is None:
        return "has no superblock"
    if len(superblock) < _SHORTEST_SUPERBLOCK_BYTES:
        return "is cut off"
    version, address_bytes = superblock[8], superblock[9 if superblock[8] >= 2 else 13]
    if version not in _ADDRESSES_AT or address_bytes != _ADDRESS_BYTES:
        raise ValueError(f"version {version} with addresses of {address_bytes} bytes")
    superblock = superblock.ljust(_LONGEST_SUPERBLOCK_BYTES, b"\0")
    _, _, end = struct.unpack_from("<QQQ", superblock, _ADDRESSES_AT[version])
    if end != size:
        return f"has {size} bytes, not {end}"
    if version == 3 and superblock[11] & _OPEN_FOR_WRITING:
        return "was not closed"
    return None


def _superblock(file: BinaryIO, size: int) -> bytes | None:
    """Return the superblock: it is at 0, or behind a user block of 512, 1024, ... bytes."""
    place = 0
    while place < size:
        file.seek(place)
        found = file.read(_LONGEST_SUPERBLOCK_BYTES)
        if found.startswith(MAGIC):
            return found
        place = place * 2 or _FIRST_USER_BLOCK
    return None
