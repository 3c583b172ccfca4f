"""Files that are made to break, to slow down or to fill the memory of what examines them."""

import io
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

from orchestrator.adopt.scan_events import Moment, Sealed
from tests.adopt.support import Script

EXAMINE = """
import resource, sys, time
from pathlib import Path
from orchestrator.adopt.save_check import examine
from orchestrator.adopt.files import SavedFiles
from orchestrator.adopt.file_check import IncompleteError
resource.setrlimit(resource.RLIMIT_DATA, (600 << 20, 600 << 20))
for path in map(Path, sys.argv[1:]):
    try:
        print(path.name, examine(SavedFiles.at(path)).proven, flush=True)
    except IncompleteError as error:
        print(path.name, "incomplete", flush=True)
"""
SHARED = pickle.EMPTY_TUPLE + 60 * (pickle.DUP + pickle.TUPLE2)
PICKLES = {
    "memo index": pickle.EMPTY_LIST + b"r" + struct.pack("<I", 1 << 31) + pickle.STOP,
    "shared key": pickle.EMPTY_DICT + SHARED + pickle.NONE + pickle.SETITEM + pickle.STOP,
    "shared id": b"(X\x07\0\0\0storageN" + SHARED + b"tQ.",
    "deep": 100_000 * pickle.EMPTY_LIST + 99_999 * pickle.APPEND + pickle.STOP,
    "long text": b"\x8d" + struct.pack("<Q", 1 << 62) + b"x",
    "long number": b"\x8b" + struct.pack("<i", 1 << 30) + b"x",
    "no line end": pickle.INT + b"1" * (1 << 20),
    "empty stack": pickle.TUPLE3 + pickle.STOP,
}


def zipped(content: bytes, **options: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", content)
    return file.getvalue()


def damaged(content: bytes, at: bytes, offset: int, new: bytes) -> bytes:
    where = content.rindex(at) + offset
    return content[:where] + new + content[where + len(new) :]


def hostile_files(root: Path) -> list[Path]:
    """Write a file or a directory of each kind, and return the paths."""
    files: dict[str, bytes] = {}
    for name, content in PICKLES.items():
        files[f"{name}.pt"] = zipped(content)
        files[f"{name} dcp/.metadata"] = content
        files[f"{name} dcp/__0_0.distcp"] = b"x"
        files[f"{name}.pkl"] = content
    whole = zipped(pickle.dumps(list(range(10000))))
    files["endless.pt"] = zipped(2_500_000 * pickle.EMPTY_DICT)
    files["zlib.pt"] = whole[:45] + bytes(200) + whole[245:]
    files["encrypted.pt"] = damaged(whole, b"PK\1\2", 8, b"\1\0")
    files["encrypted header.pt"] = damaged(whole[:6] + b"\1\0" + whole[8:], b"PK\1\2", 8, b"\1\0")
    files["method.pt"] = damaged(whole, b"PK\1\2", 10, b"\x63\0")
    # A directory that says to be longer than the file puts its members before the file.
    files["offset.pt"] = damaged(whole, b"PK\5\6", 16, struct.pack("<I", 1 << 20))
    files["bomb.pt"] = zipped(bytes(200 << 20))
    nested = 200_000 * b"[" + 200_000 * b"]"
    files["nested.safetensors"] = struct.pack("<Q", len(nested)) + nested
    files["header.safetensors"] = struct.pack("<Q", 1 << 40)
    files["shape.safetensors"] = struct.pack("<Q", 2) + b"[]"
    many = b'{"a":[' + b"[]," * (15 << 20) + b"[]]}"
    files["many.safetensors"] = struct.pack("<Q", len(many)) + many
    files["nested.json"] = nested
    files["many.json"] = b"[" + b"[]," * (5 << 20) + b"[]]"
    paths = set()
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
        paths.add(root / name.partition("/")[0])
    for suffix in ("pt", "bin", "safetensors", "pkl", "json", "npy"):
        with open(root / f"sparse.{suffix}", "wb") as file:
            file.write(struct.pack("<Q", 1 << 39) if suffix == "safetensors" else b"PK\3\4")
            file.truncate(2 << 40)
        paths.add(root / f"sparse.{suffix}")
    return sorted(paths)


def test_hostile_file_takes_little_memory_and_time(tmp_path: Path) -> None:
    """Every file gets an answer, in a process that may have 600 MiB."""
    paths = hostile_files(tmp_path)
    command = [sys.executable, "-c", EXAMINE, *map(str, paths)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    proven = {line.removesuffix(" True") for line in answer.stdout.splitlines() if "True" in line}
    assert len(answer.stdout.splitlines()) == len(paths)
    assert not {name for name in proven if "sparse" in name or "encrypted" in name}


def test_hostile_file_does_not_keep_other_saves_from_counting(tmp_path: Path) -> None:
    """A scan that meets them seals the good save beside them."""
    script = Script(tmp_path, "*")
    script.scan(Moment.FIRST_START)
    hostile_files(script.out)
    (script.out / "endless.pt").unlink()
    script.save("good-1.pt")
    sealed = [e.checkpoint for e in script.scan(after=60) if isinstance(e, Sealed)]
    assert script.out / "good-1.pt" in [checkpoint.resume_path for checkpoint in sealed]
