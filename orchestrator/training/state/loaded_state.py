"""Reads checkpoints and snapshots into a ``LoadedState``: the parts that a session restores."""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.contents import rank_file
from orchestrator.checkpoint.manifest import Manifest
from orchestrator.snapshot.slots import Image, Snapshot
from orchestrator.training.state.plain_values import from_plain
from orchestrator.training.state.progress import RESERVED, SUFFIX, Progress
from orchestrator.training.state.replicas import DIGESTS, merge_own
from orchestrator.training.state.versions import VERSIONS


@dataclass(frozen=True)
class LoadedState:
    """The parts of a state file and its manifest; ``content`` holds the state_dicts.

    The tensors in ``content`` are borrowed: they belong to a mapped file, or to a slot that a later
    snapshot will overwrite.
    """

    content: dict[str, Any]
    state: dict[str, Any]
    progress: Progress
    position: dict[str, Any]
    streams: dict[str, Any]
    problems: list[str]
    digests: dict[str, str]
    classes: dict[str, str]


def read_state(checkpoint: Checkpoint, rank: int = 0) -> LoadedState:
    """Read the state of one rank from a checkpoint.

    Raises RuntimeError if that fails. The digest has been verified before, so the cause is not a
    damaged file but, for example, short memory or another version of torch. The run fails as after
    any exception, and the checkpoint is not put into quarantine at once.
    """
    return _read(
        checkpoint.state_file,
        checkpoint.manifest,
        "the file is intact, so the checkpoint is kept: run again, or move it away to resume from "
        "an older one",
        checkpoint.path / rank_file(rank) if rank else None,
    )


def read_snapshot(snapshot: Snapshot, common: Image | None = None) -> LoadedState:
    """Read the snapshot in a slot, without copying its tensors. Raises RuntimeError.

    ``common`` is rank 0's part, of which any other rank reads what the ranks have in common.
    """
    path = _image(snapshot.descriptor, snapshot.image_bytes)
    advice = "this snapshot in memory is discarded: run again to resume from the newest checkpoint"
    if common is None:
        return _read(path, snapshot.manifest, advice)
    main = _image(common.descriptor, common.image_bytes)
    return _read(main, snapshot.manifest, advice, path, snapshot.manifest.digests)


def _image(descriptor: int, image_bytes: int) -> Path:
    # torch expects the end of the archive at the end of the mapped file.
    os.ftruncate(descriptor, image_bytes)
    return Path(f"/dev/fd/{descriptor}")


def _read(
    source: Path,
    manifest: Manifest,
    advice: str,
    part: Path | None = None,
    part_digests: Mapping[str, str] = MappingProxyType({}),
) -> LoadedState:
    """Read ``source``, and over it a rank's own ``part``, which brings its digests."""
    try:
        content = load(source, mmap=True)
        digests = manifest.digests
        if part is not None:
            own = load(part, mmap=True)
            merge_own(content, own)
            digests = {**part_digests, **own[DIGESTS]}
        for key in ("state", "rng", "data"):
            content[key] = copy.deepcopy(content[key])
        position = content["data"]
        return LoadedState(
            content=content,
            state=from_plain(content["state"]),
            progress=Progress(
                content["epoch"],
                content["step"],
                {k: v for k, v in content.items() if k not in RESERVED and not k.endswith(SUFFIX)},
                refuses_bad_values=False,
                measured_at=dict.fromkeys(manifest.metrics, content["step"]),
            ),
            position=position,
            streams=content["rng"],
            problems=_doubts(manifest),
            digests=digests,
            classes=manifest.classes,
        )
    except Exception as error:  # torch raises many classes, some with an empty message
        raise RuntimeError(f"cannot load {source}: {first_line(error)}; {advice}") from error


def _doubts(manifest: Manifest) -> list[str]:
    """Return why a run resumed from here may differ from one that was not interrupted."""
    saved, current = manifest.versions.get("torch"), VERSIONS["torch"]
    if saved is None or saved == current:
        return list(manifest.doubts)
    return [*manifest.doubts, f"it was made with torch {saved}, this is {current}"]


def load(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Return the dict in a ``torch.save`` file, read by the safe load.

    Raises TypeError if the file holds no dict, and every kind of exception that torch raises.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except RuntimeError:
        if not mmap:
            raise
        return load(path)  # some filesystems cannot map files
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__}, not a dict")
    return content


def first_line(error: Exception) -> str:
    """Return the class and the first line of an exception; torch's messages have many lines."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
