"""Reads checkpoints and classic files into the parts that a session takes over."""

import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator.checkpoint.reading import Checkpoint
from orchestrator.errors import CheckpointInvalidError, ConfigError
from orchestrator.training.plain import from_plain
from orchestrator.training.state import SUFFIX, Progress

_VERSIONS = {"torch": str(torch.__version__)}


@dataclass(frozen=True)
class Restored:
    """The content of a state.pt; ``content`` holds the state_dicts, ``problems`` the doubts."""

    content: dict[str, Any]
    state: dict[str, Any]
    progress: Progress
    position: dict[str, Any]
    streams: dict[str, Any]
    problems: list[str]


def read_state(checkpoint: Checkpoint) -> Restored:
    """Read a checkpoint's state. Raises CheckpointInvalidError."""
    content = _load(checkpoint.state_file)
    try:
        position = content["data"]
        return Restored(
            content=content,
            state=from_plain(content["state"]),
            progress=Progress(content["epoch"], content["step"], dict(checkpoint.manifest.metrics)),
            position=position,
            streams=content["rng"],
            problems=_doubts(checkpoint, position),
        )
    except KeyError as error:
        raise CheckpointInvalidError(checkpoint.path, f"state.pt lacks {error}") from None


def read_classic(source: Path) -> dict[str, Any]:
    """Read a file in the classic form; ``epoch`` and ``step`` count completed ones.

    Raises ConfigError when it is missing or has another form, CheckpointInvalidError.
    """
    if not source.exists():
        raise ConfigError(f"cannot start from {source}: there is no such file")
    content = _load(source)
    if "epoch" not in content or not any(str(key).endswith(SUFFIX) for key in content):
        raise ConfigError(
            f"cannot start from {source}: it has no 'epoch' and no '<name>_state_dict'; "
            f"its keys are {', '.join(map(str, content))}"
        )
    for key in ("epoch", "step"):
        try:
            content[key] = operator.index(content.get(key, 0))
        except TypeError:
            raise ConfigError(
                f"cannot start from {source}: its {key!r} is {content[key]!r}, not a whole number"
            ) from None
    return content


def _doubts(checkpoint: Checkpoint, position: dict[str, Any]) -> list[str]:
    """Why a run resumed from here may differ from one that was not interrupted."""
    doubts = [
        f"it was made with {name} {version}, this is {_VERSIONS[name]}"
        for name, version in checkpoint.manifest.versions.items()
        if name in _VERSIONS and version != _VERSIONS[name]
    ]
    return doubts + list(position.get("caveats", ()))


def _load(path: Path) -> dict[str, Any]:
    """Read a torch.save file with the safe default. Raises CheckpointInvalidError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, some with an empty message
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointInvalidError(path, f"torch cannot load it: {reason[0]}") from error
    if not isinstance(content, dict):
        raise CheckpointInvalidError(path, f"it holds a {type(content).__name__}, not a dict")
    return content
