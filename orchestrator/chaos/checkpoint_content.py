"""Reads a checkpoint, a session's or a framework's, as texts that are equal only if its bits are.

Of a framework's files, texts for people and pickled settings are left out, and of the Trainer's
own records what a resume or the place of the files changes: the log, and the path of the best
checkpoint.
"""

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.chaos.final_state import digest, entries, read_content
from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.contents import rank_file
from orchestrator.system.json_input import parse_object

_STATE = frozenset({".bin", ".ckpt", ".json", ".pt", ".pth", ".safetensors"})
# The settings hold the directory of this very run.
_SETTINGS = "training_args.bin"
_RECORDS = "trainer_state.json"
_CALLBACKS = "stateful_callbacks"
_NOT_COMPARED = ("log_history", "best_model_checkpoint")
# The streams themselves are beside it, each with a name.
_DIGEST_OF_STREAMS = "digests.rng"
# The length of a safetensors file's header precedes it as a little-endian number.
_LENGTH_BYTES = 8
_OFFSETS = "data_offsets"


def content_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Return a text for each entry of a checkpoint, by its path.

    Entries of a framework's files, and of the parts of other ranks than 0, begin with the file's
    name.
    """
    if checkpoint.manifest.framework is None:
        return read_content(checkpoint.state_file) | _content_of_parts(checkpoint)
    content: dict[str, str] = {}
    for name in sorted(checkpoint.manifest.files):
        file = checkpoint.contents.folder / name
        if file.suffix in _STATE and file.name != _SETTINGS:
            found = _content_of_file(file)
            content |= {f"{name}.{path}".removesuffix("."): text for path, text in found.items()}
    return content


def _content_of_parts(checkpoint: Checkpoint) -> dict[str, str]:
    return {
        f"{name}.{path}": text
        for name in map(rank_file, range(1, checkpoint.manifest.world_size))
        for path, text in read_content(checkpoint.contents.folder / name).items()
        if path != _DIGEST_OF_STREAMS
    }


def _content_of_file(file: Path) -> dict[str, str]:
    try:
        if file.suffix == ".safetensors":
            return dict(_tensors(file))
        if file.suffix == ".json":
            return dict(entries("", _records(file)))
        if zipfile.is_zipfile(file):
            return read_content(file)
    except (ValueError, LookupError, pickle.UnpicklingError):
        pass  # another format than its name says
    return {"": digest(file.read_bytes())}


def _tensors(file: Path) -> Iterator[tuple[str, str]]:
    data = file.read_bytes()
    begin = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    for name, facts in parse_object(data[_LENGTH_BYTES:begin]).items():
        if _OFFSETS in facts:
            first, last = facts[_OFFSETS]
            value = digest(data[begin + first : begin + last])
            yield name, f"{facts['dtype']}{facts['shape']} {value}"


def _records(file: Path) -> dict[str, Any]:
    records = parse_object(file.read_bytes())
    if file.name != _RECORDS:
        return records
    # For several callbacks of a class, each save appends what they are then.
    last = {
        name: states[-1:] if isinstance(states, list) else states
        for name, states in records.get(_CALLBACKS, {}).items()
    }
    kept = {key: value for key, value in records.items() if key not in _NOT_COMPARED}
    return kept | {_CALLBACKS: last}
