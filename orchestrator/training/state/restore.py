"""Reads checkpoints into the parts that a session takes over."""

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Manifest
from orchestrator.snapshot.slots import Snapshot
from orchestrator.training.state.plain_values import from_plain
from orchestrator.training.state.progress import RESERVED, SUFFIX, Progress

_VERSIONS = {"torch": str(torch.__version__)}


@dataclass(frozen=True)
class Restored:
    """The content of a state.pt and of its manifest; ``content`` holds the state_dicts.

    Its tensors are borrowed: they lie in a mapped file or, with ``in_memory``, in a slot that a
    later snapshot will overwrite.
    """

    content: dict[str, Any]
    state: dict[str, Any]
    progress: Progress
    position: dict[str, Any]
    streams: dict[str, Any]
    problems: list[str]
    digests: dict[str, str]
    in_memory: bool


def read_state(checkpoint: Checkpoint) -> Restored:
    """Read a checkpoint's state.

    Its digest has been verified, so that a failure says nothing of the disk: memory may be short,
    torch another one. It is raised as RuntimeError, a failure like any other, and never a reason to
    set the checkpoint aside at once.
    """
    return _read(
        checkpoint.state_file,
        checkpoint.manifest,
        "its bytes are those that were written, so it stays where it is: run again, or move the "
        "checkpoint away to resume from an older one",
    )


def read_snapshot(snapshot: Snapshot) -> Restored:
    """Read the image in a slot, without copying its tensors. Raises RuntimeError."""
    path = Path(f"/dev/fd/{snapshot.descriptor}")
    # torch looks for the end of the file at the end of what it maps.
    os.ftruncate(snapshot.descriptor, snapshot.image_bytes)
    advice = "this snapshot in memory is given up: run again to resume from the newest checkpoint"
    return _read(path, snapshot.manifest, advice, in_memory=True)


def _read(source: Path, manifest: Manifest, advice: str, *, in_memory: bool = False) -> Restored:
    try:
        content = load(source, mmap=True)
        for key in ("state", "rng", "data"):
            content[key] = copy.deepcopy(content[key])
        position = content["data"]
        return Restored(
            content=content,
            state=from_plain(content["state"]),
            progress=Progress(
                content["epoch"],
                content["step"],
                {k: v for k, v in content.items() if k not in RESERVED and not k.endswith(SUFFIX)},
                refuses_bad_metrics=False,
                measured_at=dict.fromkeys(manifest.metrics, content["step"]),
            ),
            position=position,
            streams=content["rng"],
            problems=_doubts(manifest),
            digests=manifest.digests,
            in_memory=in_memory,
        )
    except Exception as error:  # torch raises many kinds, some with an empty message
        raise RuntimeError(f"cannot load {source}: {first_line(error)}; {advice}") from error


def _doubts(manifest: Manifest) -> list[str]:
    """Why a run resumed from here may differ from one that was not interrupted."""
    changed = [
        f"it was made with {name} {version}, this is {_VERSIONS[name]}"
        for name, version in manifest.versions.items()
        if name in _VERSIONS and version != _VERSIONS[name]
    ]
    return manifest.doubts + changed


def load(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """What a ``torch.save`` file holds, by the safe load; raises many kinds of exceptions."""
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
    """Its class and the beginning of its text, which torch makes long."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
