"""Reads a state.pt without torch, as texts that are equal only if the values' bits are equal.

A torch.save file is a zip archive with a pickle, and a member with the bytes of each storage. Every
class in the pickle is replaced by a stand-in that keeps its arguments, so nothing is imported.
"""

import hashlib
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

PICKLE = "data.pkl"
# Offset in a member's own header of the lengths of its name and of its extra field.
_LENGTHS_OFFSET = 26
_TENSOR = "torch._utils._rebuild_tensor_v2"


def read_content(state_file: Path) -> dict[str, str]:
    """Return a text for each entry, by its path (``optimizer_state_dict.state.0.exp_avg``)."""
    with open(state_file, "rb") as file, zipfile.ZipFile(file) as archive:
        members = {
            member.filename.partition("/")[2]: _Member(file, member.header_offset, member.file_size)
            for member in archive.infolist()
        }
        return dict(entries("", _Unpickler(members).load()))


@dataclass(frozen=True)
class _Member:
    """A file in the archive, which torch never compresses.

    zipfile refuses to read it, because a storage's checksum may be 0; the manifest has its digest.
    """

    file: BinaryIO
    header_offset: int
    size: int

    def read(self) -> bytes:
        self.file.seek(self.header_offset + _LENGTHS_OFFSET)
        name_bytes, extra_bytes = struct.unpack("<HH", self.file.read(4))
        self.file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
        return self.file.read(self.size)


class _Object:
    """A stand-in for an object of any class, with its arguments and its state."""

    name = ""
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *arguments: Any) -> "_Object":
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Storage:
    def __init__(self, kind: str, items: int, data: bytes) -> None:
        self.kind = kind
        self.items = items
        self.data = data


class _Unpickler(pickle.Unpickler):
    def __init__(self, members: dict[str, _Member]) -> None:
        super().__init__(io.BytesIO(members[PICKLE].read()))
        self._members = members

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        return type(name, (_Object,), {"name": f"{module}.{name}"})

    def persistent_load(self, reference: Any) -> _Storage:
        _, kind, key, _, items = reference
        return _Storage(kind.name, items, self._members[f"data/{key}"].read())


def entries(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each value in ``value``, which is at ``path``."""
    match value:
        case dict():
            yield path, f"{len(value)} entries"
            for key, entry in value.items():
                yield from entries(f"{path}.{key}".removeprefix("."), entry)
        case list() | tuple():
            yield path, f"{len(value)} items"
            for index, entry in enumerate(value):
                yield from entries(f"{path}.{index}", entry)
        case set() | frozenset():
            yield path, str(sorted(map(repr, value)))
        case _Object(name=name, arguments=[_Storage() as storage, offset, size, stride, *_]) if (
            name == _TENSOR
        ):
            data = _bytes_of(storage, offset, tuple(size), tuple(stride))
            yield path, f"{storage.kind}{list(size)} {digest(data)}"
        case _Object():
            yield path, value.name
            yield from entries(f"{path}.arguments", value.arguments)
            if value.state is not None:
                yield from entries(f"{path}.state", value.state)
        case _Storage():
            yield path, f"{value.kind} {digest(value.data)}"
        case float():
            yield path, value.hex()
        case type():
            yield path, value.name  # type: ignore[attr-defined]
        case _:
            yield path, repr(value)


def _bytes_of(
    storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> bytes:
    """Return the tensor's own bytes if they are contiguous, else those of its whole storage."""
    contiguous = tuple(prod(size[index + 1 :]) for index in range(len(size)))
    if not storage.items or stride != contiguous:
        return storage.data
    width = len(storage.data) // storage.items
    return storage.data[offset * width : (offset + prod(size)) * width]


def digest(data: bytes) -> str:
    """Return a text that is equal only for equal bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Return the paths whose texts differ."""
    return sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))
