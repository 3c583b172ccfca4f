"""Checks that a file is whole, as far as its format shows, without running any pickle."""

import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.adopt import hdf5
from orchestrator.adopt.pickle_reader import (
    DamagedPickleError,
    PickleContent,
    PickledObject,
    PickleTooLargeError,
    ends_with_pickle,
    read_pickle,
)
from orchestrator.system.regular_files import open_regular

LARGEST_JSON_BYTES = 64 << 20
# Each bracket and each comma may stand for an object of a hundred bytes.
MOST_JSON_ITEMS = 4_000_000
# The limit of safetensors itself.
LARGEST_HEADER_BYTES = 100_000_000
LARGEST_ZIP_DIRECTORY_BYTES = 16 << 20
LARGEST_PICKLE_BYTES = 1 << 30
# Inflating this takes about a second.
LARGEST_COMPRESSED_PICKLE_BYTES = 64 << 20
MOST_PICKLES = 8
ZIP_MAGIC = b"PK\x03\x04"
DCP_METADATA = ".metadata"
DCP_SUFFIX = ".distcp"
PICKLE_SUFFIXES = {".pkl", ".pickle"}
# An empty file of these kinds is one whose writing has just begun.
_NEVER_EMPTY = {
    *(".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors", ".msgpack", ".model", ".weights"),
    *(".pkl", ".pickle", ".json", ".npz", ".npy", ".zip", ".gz", ".h5", ".hdf5", ".keras", ".onnx"),
    DCP_SUFFIX,
}


class IncompleteError(Exception):
    """Raised when something is missing; the text says what."""


def shows_whole(path: Path, size: int) -> bool:
    """Return whether the format proves that the file is whole; False where it cannot tell.

    Raises IncompleteError when something is missing, and OSError.
    """
    if size == 0 and path.suffix in _NEVER_EMPTY:
        raise IncompleteError(f"{path.name} is empty")
    if path.suffix == DCP_SUFFIX:
        return False  # pieces in a row; only .metadata knows their sizes
    try:
        return _shows_whole(path, size)
    except (OSError, IncompleteError):
        raise
    except Exception as error:
        # A file may hold anything, and a reader of its format may raise anything: that file is
        # damaged, and the others are examined all the same.
        problem = f"{path.name} is damaged: {type(error).__name__}"
        raise IncompleteError(problem) from None


def _shows_whole(path: Path, size: int) -> bool:
    if path.suffix == ".json":
        return read_json(path) is not None
    with _opened(path) as file:
        if path.suffix == ".safetensors":
            return _safetensors_shows_whole(path.name, file, size)
        beginning = file.read(len(hdf5.MAGIC))
        if beginning.startswith(ZIP_MAGIC):
            return _zip_shows_whole(path.name, file)
        if beginning == hdf5.MAGIC or path.suffix in hdf5.SUFFIXES:
            return _hdf5_shows_whole(path.name, file, size)
        if path.suffix in PICKLE_SUFFIXES:
            file.seek(0)
            return ends_with_pickle(file, size)
    return False


def read_json(path: Path) -> Any:
    """Read a JSON file; return None if that would take too much memory.

    Raises IncompleteError and OSError.
    """
    if path.stat().st_size > LARGEST_JSON_BYTES:
        return None
    with _opened(path) as file:
        text = file.read(LARGEST_JSON_BYTES)
    if _has_too_many_items(text):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise IncompleteError(f"{path.name} is not complete JSON") from None


def _opened(path: Path) -> BinaryIO:
    """Open a file of the script; in a shared directory it may be a FIFO, which nobody waits for."""
    return open(open_regular(path, os.O_RDONLY, follow_link=True), "rb")


def _has_too_many_items(text: bytes) -> bool:
    return sum(map(text.count, (b"[", b"{", b","))) > MOST_JSON_ITEMS


def _safetensors_shows_whole(name: str, file: BinaryIO, size: int) -> bool:
    """Check that the file has the length that its header asks for; False for too long a header."""
    try:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        if header_bytes > min(size, LARGEST_HEADER_BYTES):
            raise ValueError
        text = file.read(header_bytes)
        if _has_too_many_items(text):
            return False
        header = json.loads(text)
        ends = [t["data_offsets"][1] for key, t in header.items() if key != "__metadata__"]
        needed = 8 + header_bytes + max(ends, default=0)
    except (ValueError, struct.error, LookupError, TypeError, AttributeError, RecursionError):
        raise IncompleteError(f"{name} has an incomplete header") from None
    if size != needed:
        raise IncompleteError(f"{name} has {size} bytes, not {needed}")
    return True


class _BoundedReads:
    """A file for zipfile, which reads the whole directory of an archive at once."""

    def __init__(self, file: BinaryIO) -> None:
        self.tell, self.seekable = file.tell, file.seekable
        self._file = file

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        # As an OSError it would look like a disk that cannot be read now, and be tried again.
        if whence == os.SEEK_SET and offset < 0:
            raise zipfile.BadZipFile("a member begins before the file")
        return self._file.seek(offset, whence)

    def read(self, count: int = -1) -> bytes:
        wanted = LARGEST_ZIP_DIRECTORY_BYTES + 1 if count < 0 else count
        if wanted <= LARGEST_ZIP_DIRECTORY_BYTES:
            return self._file.read(wanted)
        content = self._file.read(LARGEST_ZIP_DIRECTORY_BYTES + 1)
        if len(content) > LARGEST_ZIP_DIRECTORY_BYTES:
            raise _TooLargeError
        return content


class _TooLargeError(Exception):
    """Nothing is known to be wrong, but to find out would take too much memory or time."""


def _hdf5_shows_whole(name: str, file: BinaryIO, size: int) -> bool:
    """Check that the file ends where its superblock says; False for a version that is not known."""
    try:
        problem = hdf5.problem_of(file, size)
    except ValueError:
        return False
    if problem:
        raise IncompleteError(f"{name} {problem}")
    return True


def _zip_shows_whole(name: str, file: BinaryIO) -> bool:
    """Check that a torch.save file has its zip directory and every storage that its pickle names.

    A file that torch had to close early, on a full disk or an exception, has a directory too.
    """
    bounded: Any = _BoundedReads(file)
    try:
        with zipfile.ZipFile(bounded) as archive:
            # A cut archive may end with one of its members that is an archive too. zipfile then
            # reads that one, and takes all before it for a prefix.
            if min((info.header_offset for info in archive.infolist()), default=0) > 0:
                raise zipfile.BadZipFile
            members = set(archive.namelist())
            pickles = sorted(m for m in members if m.rpartition("/")[2] == "data.pkl")
            if len(pickles) > MOST_PICKLES:
                return False
            for pickled in pickles:
                folder = pickled.removesuffix("data.pkl") + "data/"
                named = {folder + key for key in _storages(archive, archive.getinfo(pickled))}
                if missing := named - members:
                    raise IncompleteError(f"{name} lacks {min(missing)}")
    except (_TooLargeError, PickleTooLargeError):
        return False
    except zipfile.BadZipFile:
        raise IncompleteError(f"{name} is cut off") from None
    except NotImplementedError:  # it asks for a later version of the format, say
        raise IncompleteError(f"{name} has a damaged directory") from None
    except (DamagedPickleError, EOFError):
        raise IncompleteError(f"{name} has an incomplete data.pkl") from None
    return True


def torch_root(path: Path) -> dict[str, Any]:
    """Return the dict that a torch.save file holds, with texts, integers, dicts and objects.

    It is empty where the file holds none, or reading it would take too much. Raises OSError.
    """
    try:
        with _opened(path) as file:
            bounded: Any = _BoundedReads(file)
            with zipfile.ZipFile(bounded) as archive:
                names = [n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl"]
                root = _content(archive, archive.getinfo(names[0])).root if names else None
    except OSError:
        raise
    except Exception:  # it is no zip, or a damaged one
        return {}
    return root if isinstance(root, dict) else {}


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> PickleContent:
    stored = info.compress_type == zipfile.ZIP_STORED
    if info.file_size > (LARGEST_PICKLE_BYTES if stored else LARGEST_COMPRESSED_PICKLE_BYTES):
        raise _TooLargeError
    with archive.open(info) as pickled:
        return read_pickle(pickled, info.file_size)  # type: ignore[arg-type]


def _storages(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> set[str]:
    """Return the keys of the storages that a data.pkl names."""
    return {
        identity[2]
        for identity in _content(archive, info).persistent_ids
        if isinstance(identity, tuple)
        and len(identity) > 2
        and identity[0] == "storage"
        and isinstance(identity[2], str)
    }


def dcp_sizes(metadata: Path) -> dict[str, int] | None:
    """Return the files that torch.distributed.checkpoint's .metadata names, with least sizes.

    The sizes are in bytes; None where reading them would take too much memory or time. Raises
    IncompleteError and OSError.
    """
    try:
        with _opened(metadata) as file:
            content = read_pickle(file, os.fstat(file.fileno()).st_size)
    except PickleTooLargeError:
        return None
    except DamagedPickleError:
        raise IncompleteError(f"{metadata.name} is incomplete") from None
    if not isinstance(content.root, PickledObject) or "storage_data" not in _state(content.root):
        raise IncompleteError(f"{metadata.name} is incomplete")
    sizes: dict[str, int] = {}
    for piece in content.objects:
        state = _state(piece)
        name, offset, length = (state.get(key) for key in ("relative_path", "offset", "length"))
        if isinstance(name, str) and isinstance(offset, int) and isinstance(length, int):
            sizes[name] = max(sizes.get(name, 0), offset + length)
    return sizes


def _state(made: PickledObject) -> dict[str, Any]:
    return made.state if isinstance(made.state, dict) else {}
