"""Checks that a file is whole, as far as its format shows, without running any pickle."""

import contextlib
import json
import os
import pickle
import pickletools
import struct
import zipfile
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

LARGEST_JSON_BYTES = 256 << 20
ZIP_MAGIC = b"PK\x03\x04"
DCP_METADATA = ".metadata"
DCP_SUFFIX = ".distcp"
PICKLE_SUFFIXES = {".pkl", ".pickle"}
# Reading this many takes some seconds; a longer pickle holds numbers one by one.
MOST_OPCODES = 5_000_000
LONGEST_READ_BYTES = 1 << 20
# An empty file of these kinds is one whose writing has just begun.
_NEVER_EMPTY = {".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".pkl", ".json", ".npz", DCP_SUFFIX}


class IncompleteError(Exception):
    """Raised when something is missing; the text says what."""


def shows_whole(path: Path, size: int) -> bool:
    """Return whether the format proves that the file is whole; False where it cannot tell.

    Raises IncompleteError when something is missing, and OSError.
    """
    if size == 0 and path.suffix in _NEVER_EMPTY:
        raise IncompleteError(f"{path.name} is empty")
    if path.suffix == ".json":
        read_json(path)
        return True
    if path.suffix == DCP_SUFFIX:
        return False  # pieces in a row; only .metadata knows their sizes
    with open(path, "rb") as file:
        if path.suffix == ".safetensors":
            _check_safetensors(path.name, file, size)
            return True
        if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC:
            _check_zip(path.name, file)
            return True
        if path.suffix in PICKLE_SUFFIXES:
            file.seek(0)
            return _is_one_pickle(file)
    return False


def read_json(path: Path) -> Any:
    """Read a JSON file; return None if it is too large. Raises IncompleteError and OSError."""
    if path.stat().st_size > LARGEST_JSON_BYTES:
        return None
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise IncompleteError(f"{path.name} is not complete JSON") from None


def _check_safetensors(name: str, file: BinaryIO, size: int) -> None:
    try:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        if header_bytes > size:
            raise ValueError
        header = json.loads(file.read(header_bytes))
        ends = [t["data_offsets"][1] for key, t in header.items() if key != "__metadata__"]
        needed = 8 + header_bytes + max(ends, default=0)
    except (ValueError, struct.error, LookupError, TypeError, AttributeError):
        raise IncompleteError(f"{name} has an incomplete header") from None
    if size != needed:
        raise IncompleteError(f"{name} has {size} bytes, not {needed}")


def _check_zip(name: str, file: BinaryIO) -> None:
    """Check that a torch.save file has its zip directory and every storage that its pickle names.

    A file that torch had to close early, on a full disk or an exception, has a directory too.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = set(archive.namelist())
            for pickled in [m for m in members if m.rpartition("/")[2] == "data.pkl"]:
                reader = _Reader(archive.open(pickled))
                reader.load()
                folder = pickled.removesuffix("data.pkl") + "data/"
                if missing := {folder + key for key in reader.storages} - members:
                    raise IncompleteError(f"{name} lacks {min(missing)}")
    except zipfile.BadZipFile:
        raise IncompleteError(f"{name} is cut off") from None
    except NotImplementedError:  # it asks for encryption, say, or a later version of the format
        raise IncompleteError(f"{name} has a damaged directory") from None
    except _PICKLE_ERRORS:
        raise IncompleteError(f"{name} has an incomplete data.pkl") from None


def _is_one_pickle(file: BinaryIO) -> bool:
    """Return whether the file ends with the pickle's STOP; joblib, say, adds bytes after it."""
    skimmed: Any = _Skimmed(file)
    with contextlib.suppress(*_PICKLE_ERRORS):
        for opcode, _, _ in islice(pickletools.genops(skimmed), MOST_OPCODES):
            if opcode.name == "STOP":
                return not file.read(1)
    return False


class _Skimmed:
    """A file that skips long arguments, such as arrays: pickletools needs only their length."""

    def __init__(self, file: BinaryIO) -> None:
        self.readline = file.readline
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def read(self, count: int) -> bytes | range:
        if count <= LONGEST_READ_BYTES:
            return self._file.read(count)
        here = self._file.tell()
        return range(self._file.seek(min(here + count, self._size)) - here)


def dcp_sizes(metadata: Path) -> dict[str, int]:
    """Return the files that torch.distributed.checkpoint's .metadata names, with least sizes.

    The sizes are in bytes. Raises IncompleteError and OSError.
    """
    sizes: dict[str, int] = {}
    try:
        with open(metadata, "rb") as file:
            stored = _Reader(file).load().state["storage_data"]
        for piece in stored.values():
            name, end = piece.state["relative_path"], piece.state["offset"] + piece.state["length"]
            sizes[str(name)] = max(sizes.get(str(name), 0), int(end))
    except _PICKLE_ERRORS:
        raise IncompleteError(f"{metadata.name} is incomplete") from None
    return sizes


# The exceptions that a damaged pickle, or one of an unexpected shape, may raise.
_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    OverflowError,
    MemoryError,
)


class _Inert:
    """A stand-in for every object of a pickle: it accepts everything and does nothing."""

    state: Any = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass


class _Reader(pickle.Unpickler):
    """An unpickler that imports and calls nothing that the pickle names."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.storages: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        return _Inert

    def persistent_load(self, identity: Any) -> Any:
        if isinstance(identity, tuple) and identity[:1] == ("storage",):
            self.storages.add(str(identity[2]))
        return _Inert()
