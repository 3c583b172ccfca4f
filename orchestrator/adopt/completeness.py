"""Whether a checkpoint of a script is whole: what each framework's must hold, and what others held.

A directory has no last byte. It is proven whole by what its framework writes last, or by having
everything that an earlier checkpoint of the run has, each file proven whole or as long as there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.adopt.files import Contents, kind_of, kinds_of
from orchestrator.adopt.formats import (
    DCP_METADATA,
    DCP_SUFFIX,
    IncompleteError,
    dcp_sizes,
    read_json,
    shows_whole,
)

INDEX_SUFFIX = ".index.json"
# What the Hugging Face Trainer writes last, and what tells that a directory is its own.
TRAINER_STATE = "trainer_state.json"
TRAINER_FILES = ("training_args.bin", "optimizer.pt", "scheduler.pt")
# Accelerate writes the random states after these.
ACCELERATE_FILES = ("optimizer.bin", "scheduler.bin", "sampler.bin")
ACCELERATE_RANDOM_STATES = "random_states_"


@dataclass(frozen=True)
class Completeness:
    """Nothing is seen to be missing; ``proven`` that nothing is, else ``doubt`` says why not."""

    proven: bool
    doubt: str = ""


def examine(contents: Contents, usual: Mapping[str, int] | None = None) -> Completeness:
    """Look at every file; ``usual`` are the sizes of those in an earlier checkpoint's directory.

    Raises IncompleteError, and OSError when the system does not let us see.
    """
    sizes = {name: file.bytes for name, file in contents.files.items()}
    silent = {n: size for n, size in sizes.items() if not shows_whole(contents.root / n, size)}
    if not contents.is_directory:
        return Completeness(not silent, "its format does not show whether it is complete")
    if not contents.files:
        raise IncompleteError("it is empty")
    _check_indexes(contents)
    measured = _check_dcp(contents)
    is_trainer = _check_trainer(contents)
    _check_accelerate(contents)
    if usual is not None:
        lacking = kinds_of(usual) - kinds_of(contents.files)
        if lacking:
            return Completeness(False, f"it lacks {min(lacking)}, which an earlier one has")
        as_long = {(kind_of(name), size) for name, size in usual.items()}
        of_other_size = {n for n, size in silent.items() if (kind_of(n), size) not in as_long}
        doubtful = of_other_size - measured
        if not doubtful or is_trainer:
            return Completeness(True)
        return Completeness(
            False, f"the format of {min(doubtful)} does not show whether it is complete"
        )
    is_dcp = measured == contents.files.keys()
    return Completeness(is_dcp or is_trainer, "nothing in it shows that it is complete")


def check_all_new(now: dict[str, int], before: dict[str, int]) -> None:
    """Where some files of a directory were written over, all must have been: by their times.

    Raises IncompleteError.
    """
    both = sorted(now.keys() & before.keys())
    old = [name for name in both if now[name] == before[name]]
    new = [name for name in both if now[name] != before[name]]
    if old and new:
        raise IncompleteError(f"it is partly overwritten: {new[0]} is new, {old[0]} is not")


def _check_indexes(contents: Contents) -> None:
    """Every shard that an index of a sharded model names must be there."""
    for name in contents.files:
        if not name.endswith(INDEX_SUFFIX):
            continue
        index = read_json(contents.root / name)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        folder = name.rpartition("/")[0]
        for shard in sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else ():
            _require(contents, f"{folder}/{shard}".lstrip("/"), f"which {name} names")


def _check_dcp(contents: Contents) -> set[str]:
    """torch.distributed.checkpoint writes .metadata last; the files that this proves whole."""
    measured = set()
    folders = {n.rpartition("/")[0] for n in contents.files if n.endswith(DCP_SUFFIX)}
    for folder in folders:
        metadata = f"{folder}/{DCP_METADATA}".lstrip("/")
        _require(contents, metadata, "which is written last")
        measured.add(metadata)
        for shard, least in dcp_sizes(contents.root / metadata).items():
            name = f"{folder}/{shard}".lstrip("/")
            _require(contents, name, f"which {metadata} names")
            if contents.files[name].bytes < least:
                size = contents.files[name].bytes
                raise IncompleteError(f"{name} has {size} bytes, not {least}")
            measured.add(name)
    return measured


def _check_trainer(contents: Contents) -> bool:
    if any(name in contents.files for name in TRAINER_FILES):
        _require(contents, TRAINER_STATE, "which the Trainer writes last")
    return TRAINER_STATE in contents.files


def _check_accelerate(contents: Contents) -> None:
    if any(name in contents.files for name in ACCELERATE_FILES) and not any(
        name.startswith(ACCELERATE_RANDOM_STATES) for name in contents.files
    ):
        raise IncompleteError("it lacks the random states, which Accelerate writes last")


def _require(contents: Contents, name: str, why: str) -> None:
    if name not in contents.files:
        raise IncompleteError(f"it lacks {name}, {why}")
