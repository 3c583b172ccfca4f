"""Checks that what a script has saved is whole: what its framework must write, what others hold.

A directory has no last byte. It is proven whole by the file that its framework writes last, or by
having everything that an earlier checkpoint of the run has, each file proven whole or as long as
in that checkpoint.
"""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.adopt.file_check import (
    DCP_METADATA,
    DCP_SUFFIX,
    IncompleteError,
    dcp_sizes,
    read_json,
    shows_whole,
)
from orchestrator.adopt.files import SavedFiles, kind_of, kinds_of
from orchestrator.adopt.rank_files import check_rank_files, latest_files
from orchestrator.system.holes import problem_of_holes

INDEX_SUFFIX = ".index.json"
# The file that the Hugging Face Trainer writes last, and the files by which it is recognized.
TRAINER_STATE = "trainer_state.json"
TRAINER_FILES = ("training_args.bin", "optimizer.pt", "scheduler.pt")
# Accelerate writes the random states after these.
ACCELERATE_FILES = ("optimizer.bin", "scheduler.bin", "sampler.bin")
ACCELERATE_RANDOM_STATES = "random_states_"
ACCELERATE_MODEL = re.compile(r"\.safetensors$|(^|/)pytorch_model[^/]*\.bin$")
ACCELERATE_REST_NS = 1_000_000_000


@dataclass(frozen=True)
class Completeness:
    """Files of which none is seen to be missing.

    ``proven`` says that none can be missing; otherwise ``doubt`` says why that is not proven.
    """

    proven: bool
    doubt: str = ""


def examine(saved: SavedFiles, usual: Mapping[str, int] | None = None) -> Completeness:
    """Examine every file; ``usual`` has the sizes of the files in an earlier checkpoint.

    Raises IncompleteError when something is missing, and OSError when the files cannot be read.
    """
    if saved.states and not any(saved.sizes.values()):
        raise IncompleteError(
            "it is empty" if saved.is_directory else f"{saved.path.name} is empty"
        )
    for name in saved.states:
        _check_allocation(saved, name)
    silent = {n: size for n, size in saved.sizes.items() if not shows_whole(saved.root / n, size)}
    if not saved.is_directory:
        return Completeness(not silent, "its format does not show whether it is complete")
    if not saved.states:
        raise IncompleteError("it is empty")
    _check_indexes(saved)
    measured = _check_dcp(saved) | latest_files(saved)
    accounted = measured | (check_rank_files(saved) - silent.keys())
    is_trainer = _check_trainer(saved)
    is_accelerate = _check_accelerate(saved, accounted) and not silent.keys() - measured
    if usual is None:
        is_known = accounted == saved.states.keys()
        proven = is_known or is_trainer or is_accelerate
        return Completeness(proven, "nothing in it shows that it is complete")
    # The number of ranks may change where the layout tells it.
    of_ranks = {os.path.basename(kind) for kind in kinds_of(accounted)}
    fewer = kinds_of(usual) - kinds_of(saved.states)
    if lacking := [kind for kind in fewer if os.path.basename(kind) not in of_ranks]:
        return Completeness(False, f"it lacks {min(lacking)}, which an earlier one has")
    as_long = {(kind_of(name), size) for name, size in usual.items()}
    of_other_size = {n for n, size in silent.items() if (kind_of(n), size) not in as_long}
    doubtful = of_other_size - measured
    if not doubtful or is_trainer:
        return Completeness(True)
    return Completeness(
        False, f"the format of {min(doubtful)} does not show whether it is complete"
    )


def check_all_new(now: Mapping[str, int], before: Mapping[str, int]) -> None:
    """Check that a directory was written over completely or not at all, by modification times.

    Raises IncompleteError for a mix of new and old files.
    """
    both = sorted(now.keys() & before.keys())
    old = [name for name in both if now[name] == before[name]]
    new = [name for name in both if now[name] != before[name]]
    if old and new:
        raise IncompleteError(f"it is partly overwritten: {new[0]} is new, {old[0]} is not")


def _check_indexes(saved: SavedFiles) -> None:
    """Require every shard that an index of a sharded model names."""
    for name in saved.states:
        if not name.endswith(INDEX_SUFFIX):
            continue
        index = read_json(saved.root / name)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        folder = name.rpartition("/")[0]
        for shard in sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else ():
            _require(saved, f"{folder}/{shard}".lstrip("/"), f"which {name} names")


def _check_dcp(saved: SavedFiles) -> set[str]:
    """Require what .metadata names, and return the files that this proves whole.

    torch.distributed.checkpoint writes .metadata last.
    """
    measured = set()
    folders = {n.rpartition("/")[0] for n in saved.states if n.endswith(DCP_SUFFIX)}
    for folder in folders:
        metadata = f"{folder}/{DCP_METADATA}".lstrip("/")
        _require(saved, metadata, "which is written last")
        sizes = dcp_sizes(saved.root / metadata)
        if sizes is None:
            continue
        measured.add(metadata)
        for shard, least in sizes.items():
            name = f"{folder}/{shard}".lstrip("/")
            _require(saved, name, f"which {metadata} names")
            if saved.states[name].bytes < least:
                size = saved.states[name].bytes
                raise IncompleteError(f"{name} has {size} bytes, not {least}")
            measured.add(name)
    return measured


def _check_trainer(saved: SavedFiles) -> bool:
    if any(name in saved.states for name in TRAINER_FILES):
        _require(saved, TRAINER_STATE, "which the Trainer writes last")
    return TRAINER_STATE in saved.states


def _check_accelerate(saved: SavedFiles, accounted: set[str]) -> bool:
    """Return whether it is a directory of Accelerate's that was at rest after its last file.

    Only objects that the script has registered are written after the random states, at once. With
    FSDP and DeepSpeed the model is in ``accounted`` files of folders.
    """
    has_states = any(name.startswith(ACCELERATE_RANDOM_STATES) for name in saved.states)
    is_accelerate = any(name in saved.states for name in ACCELERATE_FILES)
    if is_accelerate and not has_states:
        raise IncompleteError("it lacks the random states, which Accelerate writes last")
    has_model = any(ACCELERATE_MODEL.search(name) for name in saved.states)
    has_folders = has_states and any("/" in name for name in accounted)
    at_rest = time.time_ns() - saved.last_change_ns > ACCELERATE_REST_NS
    return ((is_accelerate and has_model) or has_folders) and at_rest


def _check_allocation(saved: SavedFiles, name: str) -> None:
    """Check that a large file has more than its length: reading it would keep other saves waiting.

    Raises IncompleteError, OSError.
    """
    if (problem := problem_of_holes((saved.root / name).stat())) is not None:
        raise IncompleteError(f"{os.path.basename(name)} {problem}")


def _require(saved: SavedFiles, name: str, why: str) -> None:
    if name not in saved.states:
        raise IncompleteError(f"it lacks {name}, {why}")
