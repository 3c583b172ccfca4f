"""Every border by its name, with inputs from which the fuzzer derives others."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from orchestrator.ipc.control_page import PAGE_BYTES
from tests.fuzzing import borders, file_borders

TIME = "2026-01-01T00:00:00+00:00"
START = {"command": ["a"], "arguments": ["b"], "directory": "/", "configuration": {"c": "d"}}
MANIFEST = {
    "format_version": 1,
    "run_id": "ab",
    "step": 7,
    "epoch": 1,
    "reason": "periodic",
    "metrics": {"loss": 1.5, "worst": "nan"},
    "healthy": True,
    "time": TIME,
    "files": {"state.pt": {"bytes": 1, "xxh3_128": "0" * 32}},
    "versions": {"torch": "2"},
    "digests": {"model": "0"},
    "doubts": ["a"],
    "start": START,
}
ADOPTED = {
    "path": "/out/a.pt",
    "is_directory": False,
    "numbered": True,
    "number": 7,
    "written_here": True,
    "kept": False,
    "modified_ns": {"a.pt": 1},
    "path_from_run": "../../out/a.pt",
}
RECORDS: dict[str, Any] = {
    "lock": {"pid": 7, "host": "h", "socket": "/s"},
    "run.json": {
        "format_version": 1,
        "run_id": "ab",
        "command": ["a"],
        "created": TIME,
        "script": "train",
        "program": {"path": "/train.py", "entry": None, "directory": "/", "from_run": "../.."},
    },
    "trust.json": {"format_version": 1, "users": [65534]},
    "done.json": {"step": 7, "epoch": 1, "time": TIME, "command": ["a"], "start": START},
    "tracking.json": {"mlflow_run_id": "ab"},
    "written.json": {
        "here": ["/a"],
        "previous": {"/a": {"b": 1}},
        "has_rewrites": True,
        "descent": {"step": 7},
    },
    "metrics.jsonl": {"step": 7, "epoch": 1, "poll": False, "time": TIME, "metrics": {"a": 1}},
    "journal.jsonl": {
        "time": TIME,
        "event": "attempt_exited",
        "attempt": 1,
        "status": 1,
        "cause": "a",
        "outcome": "failed",
        "step": 7,
    },
    "journal.index.json": {"format_version": 1, "bytes": 1, "digest": "0", "summary": {}},
    f"{file_borders.ATTEMPT}/error.json": {
        "type": "OSError",
        "message": "a",
        "errno": 28,
        "bases": ["Exception"],
        "location": "train.py:7",
    },
    f"{file_borders.ATTEMPT}/modules.json": {"modules": ["json"], "variables": {}},
    f"{file_borders.CHECKPOINT}/manifest.json": MANIFEST,
    f"{file_borders.QUARANTINED}/quarantine.json": {"name": "a", "reason": "b", "time": TIME},
}
OUTPUT = b"""\x1b[1mepoch\r 3\nTraceback (most recent call last):
  File "train.py", line 7, in main
OSError: [Errno 28] No space left on device
Fatal Python error: Segmentation fault
  File "train.py", line 7 in main
"""
ATTRIBUTES = {"storage_data": 0, "relative_path": "__0_0.distcp", "offset": 0, "length": 9}


@dataclass(frozen=True)
class Target:
    """A border, and inputs that it accepts."""

    read: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


class _Stateful:
    def __init__(self) -> None:
        self.__dict__.update(ATTRIBUTES)


def _json(*values: object) -> tuple[bytes, ...]:
    return tuple(json.dumps(value).encode() + b"\n" for value in values)


def _pickles() -> tuple[bytes, ...]:
    value = [_Stateful(), {"a": (1, 2.5, b"c", None)}, [7] * 3]
    return tuple(pickle.dumps(value, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1))


def _saved_by_torch() -> tuple[bytes, ...]:
    """Return files of torch.save: weights, the classic form, and the format before zip."""
    import torch

    weights = torch.nn.Linear(2, 1).state_dict()
    classic = {"epoch": 1, "step": 7, "model_state_dict": weights, "loss": torch.tensor(0.5)}
    files = [io.BytesIO() for _ in range(3)]
    torch.save(weights, files[0])
    torch.save(classic, files[1])
    torch.save(classic, files[2], _use_new_zipfile_serialization=False)
    return tuple(file.getvalue() for file in files)


def _zips() -> tuple[bytes, ...]:
    archives = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.writestr("a/data.pkl", _pickles()[2])
            archive.writestr("a/data/0", b"1234")
        archives.append(file.getvalue())
    return tuple(archives)


def _safetensors() -> bytes:
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"__metadata__": {"b": "a"}, "a": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


def _hdf5() -> bytes:
    addresses = struct.pack("<QQQQ", 0, 2**64 - 1, 100, 2**64 - 1)
    return (b"\x89HDF\r\n\x1a\n" + bytes([0, 0, 0, 0, 0, 8, 8, 0]) + bytes(8) + addresses).ljust(
        100
    )


def _page() -> bytes:
    values = [1, 7, 1, 2] + 28 * [0] + [1, 1, 9, len(_json(MANIFEST)[0]), 7, 1, 1]
    return struct.pack(f"<{len(values)}q", *values).ljust(PAGE_BYTES, b"\0") + _json(MANIFEST)[0]


MESSAGES = (
    {"type": "hello", "attempt": "1", "pid": 7},
    {"type": "snapshot", "step": 7, "seconds": 0.5, "metrics": {"a": 1}},
    {"type": "write", "generation": 1, "reason": "periodic", "name": "a"},
)
ANSWERS = (
    {
        "run_id": "ab",
        "state": "training",
        "run_dir": "/a",
        "step": 7,
        "epoch": 1,
        "metrics": {"a": 1.5},
        "restarts": 1,
        "lose_at_most_seconds": 0.5,
        "newest_checkpoint": {"path": "/a/b", "step": 7, "age_seconds": 1.5},
        "ranks": [{"rank": 0, "pid": 7, "step": 7, "state": "train"}],
    },
    {"type": "stopping", "grace_seconds": 30},
)
SETTINGS = (
    b"grace = '10s'\nkeep = 3\n[\"a.b\".c]\nd = {e = [1.5, true]}\n",
    b'adopt = [\'a-*\', """b\n"""]\nresume-arg = \'--resume {path}\'\n',
)
LOG_LINE = {"event": "a", "level": "info", "timestamp": TIME, "details": ["b"], "c": 1}


def targets() -> dict[str, Target]:
    """Return every border; the seeds of import need torch."""
    pickles, zips, safetensors = _pickles(), _zips(), _safetensors()
    found = {
        "json": Target(borders.json_text, _json({"a": [1, "\x1b\0\ud800"]}, MANIFEST)),
        "manifest": Target(borders.manifest, _json(MANIFEST, {**MANIFEST, "adopted": ADOPTED})),
        "message": Target(borders.message, _json(*MESSAGES)),
        "answer": Target(borders.answer, _json(*ANSWERS)),
        "settings": Target(file_borders.settings_file, SETTINGS),
        "control-page": Target(borders.control_page, (_page(),)),
        "log-line": Target(borders.log_line, (*_json(LOG_LINE), b"plain\x1b[2J")),
        "pickle": Target(borders.pickled, pickles),
        "import": Target(file_borders.imported_file, (*_saved_by_torch(), safetensors)),
    }
    adopted = {
        "a.pt": zips,
        "a.safetensors": (safetensors,),
        "a.h5": (_hdf5(),),
        "a.json": _json({"weight_map": {"a": "b"}}),
        "a.pkl": pickles,
        ".metadata": pickles,
    }
    for name, seeds in adopted.items():
        found[f"adopted-{name}"] = Target(partial(file_borders.adopted_file, name), seeds)
    for name in file_borders.RUN_FILES:
        seeds = _json(RECORDS[name]) if name in RECORDS else (OUTPUT,)
        read = partial(file_borders.run_file, name)
        found[name.rpartition("/")[2]] = Target(read, seeds)
    return found
