"""What happens to the files of a checkpoint: it is damaged, replaced or moved."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoint.support import state_of

DIGEST_OF_NOTHING = "99aa06d3014798d86001c324468d497f"


def flip_bit(file: Path, offset: int = 12_345) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(data)


def edit_manifest(path: Path, **changes: object) -> None:
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | changes))


def move_elsewhere(path: Path) -> Path:
    """Put something outside the run, whole and valid, and return where it is."""
    target = path.parents[2] / f"elsewhere-{path.name}"
    path.rename(target)
    return target


def replace_by_link(path: Path) -> None:
    path.symlink_to(move_elsewhere(path))


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def state_zeroed(path: Path, start: int, end: int) -> None:
    data = bytearray(state_of(300))
    data[start:end] = bytes(end - start)
    (path / "state.pt").write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path / "state.pt", 19_999),
    "longer": lambda path: (path / "state.pt").write_bytes(state_of(300) + b"x"),
    "one bit flipped": lambda path: flip_bit(path / "state.pt"),
    "first bit flipped": lambda path: flip_bit(path / "state.pt", 0),
    "last bit flipped": lambda path: flip_bit(path / "state.pt", -1),
    "4 KiB zeroed": lambda path: state_zeroed(path, 4096, 8192),
    "zero-filled": lambda path: state_zeroed(path, 0, 20_000),
    "empty": lambda path: os.truncate(path / "state.pt", 0),
    "of another step": lambda path: (path / "state.pt").write_bytes(state_of(200)),
    "no state": lambda path: (path / "state.pt").unlink(),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "nothing at all": lambda path: [file.unlink() for file in path.iterdir()],
    "manifest empty": lambda path: os.truncate(path / "manifest.json", 0),
    "manifest torn": lambda path: os.truncate(path / "manifest.json", 100),
    "manifest zero-filled": lambda path: (path / "manifest.json").write_bytes(bytes(500)),
    "manifest huge": lambda path: (path / "manifest.json").write_bytes(b" " * (2 << 20)),
    "manifest of another step": lambda path: edit_manifest(path, step=299),
    "manifest points outside": lambda path: edit_manifest(
        path, files={"../step-000000000200/state.pt": {"bytes": 20_000, "xxh3_128": "0"}}
    ),
    "manifest without state": lambda path: (
        (path / "other.pt").touch(),
        edit_manifest(path, files={"other.pt": {"bytes": 0, "xxh3_128": DIGEST_OF_NOTHING}}),
    ),
    "manifest names a missing file too": lambda path: edit_manifest(
        path,
        files=json.loads((path / "manifest.json").read_bytes())["files"]
        | {"more.pt": {"bytes": 1, "xxh3_128": "0"}},
    ),
    "state a link": lambda path: replace_by_link(path / "state.pt"),
    "state a directory": lambda path: replace_by_directory(path / "state.pt"),
    "manifest a directory": lambda path: replace_by_directory(path / "manifest.json"),
    "directory a link": replace_by_link,
    "directory a file": lambda path: (move_elsewhere(path), path.write_bytes(b"")),
    "directory a dangling link": lambda path: (
        move_elsewhere(path),
        path.symlink_to(path.parent / "missing"),
    ),
}
damaged = pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
