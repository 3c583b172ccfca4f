"""Resumes a run with another number of ranks than have saved it.

Weights and optimizer states are put together by shard_restore. What is a rank's own has no such
whole: a rank that was there before goes on with its own, a new one begins as the script has set it
up. Nobody knows yet which samples of an epoch other ranks have left, so that a run is resumed at
the end of an epoch only.
"""

from dataclasses import replace
from pathlib import Path

import torch

from orchestrator.errors import ConfigError
from orchestrator.training.runtime.rank_link import World
from orchestrator.training.state import rng
from orchestrator.training.state.loaded_state import LoadedState
from orchestrator.training.state.registered_objects import Registry

# They are of data and streams that these ranks go through in another way.
_OF_OTHER_RANKS = frozenset({"rng", "next_batch", "first_batch"})


def resized(
    restored: LoadedState, source: Path, saved: int, world: World, registry: Registry
) -> LoadedState:
    """Return what a rank of ``world`` goes on with, of what ``saved`` ranks have saved.

    Raises ConfigError where they were in the middle of an epoch.
    """
    position = restored.position
    if position["pass"] is not None or position.get("cycles"):
        raise ConfigError(
            f"cannot resume from {source} with {_ranks(world.size)}: {_ranks(saved)} had a part "
            "of the data behind them, and other ranks would lose samples or see them twice; use "
            f"--nproc-per-node {saved}, or change the number at a checkpoint of an epoch's end "
            "(--every 1epoch)"
        )
    doubts = [
        f"{_ranks(saved)} saved it and {_ranks(world.size)} continue, which add up in another "
        "order and see other samples"
    ]
    position = {**position, "last_epoch": []}
    streams, digests = restored.streams, restored.digests
    if world.rank >= saved:
        position["seed"] = torch.initial_seed()
        streams = rng.capture(registry.generators)
        digests = {key: each for key, each in digests.items() if key not in _OF_OTHER_RANKS}
        doubts.append(f"rank {world.rank} is new, with random streams as the script set them")
    return replace(
        restored,
        position=position,
        streams=streams,
        digests={key: each for key, each in digests.items() if key != "first_batch"},
        problems=restored.problems + doubts,
    )


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number} ranks"
