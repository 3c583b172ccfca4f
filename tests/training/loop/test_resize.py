"""What another number of ranks goes on with, and what it is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from orchestrator.errors import ConfigError, MismatchError
from orchestrator.training.loop.loop_state import LoopState
from orchestrator.training.loop.resize import resized
from orchestrator.training.loop.resume import start_from_classic
from orchestrator.training.runtime.rank_link import World
from orchestrator.training.state.loaded_state import LoadedState
from orchestrator.training.state.progress import Progress
from orchestrator.training.state.registered_objects import Registry
from tests.training.state.sharded import as_rank

POSITION: dict[str, Any] = {"seed": 1, "passes": [], "pass": None, "last_epoch": [{}], "cycles": []}
RESTORED = LoadedState(
    content={},
    state={},
    progress=Progress(1, 8),
    position=POSITION,
    streams={"torch": "of rank 0"},
    problems=[],
    digests={"rng": "1", "next_batch": "2", "first_batch": "3", "scheduler_state_dict": "4"},
    classes={},
)


def test_file_of_weights_alone_is_cut_or_refused_by_its_whole_size(tmp_path: Path) -> None:
    """A whole tensor that is as large as a rank's piece of another one is not taken for it."""
    source = tmp_path / "weights.pt"
    for rows, problem in ((4, None), (2, r"weight is \[2, 3\] in the file, \[4, 3\] here")):
        weights = torch.nn.Linear(3, rows).state_dict()
        torch.save({"epoch": 0, "model_state_dict": weights}, source)
        with as_rank(1, 2):
            model = torch.nn.Linear(3, 4)
            fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
            registry = Registry()
            registry.add({"model": model})
            registry.find_shards()
            loop_state = LoopState(registry, {}, 0)
            if problem is not None:
                with pytest.raises(MismatchError, match=problem):
                    start_from_classic(source, registry, loop_state)
                continue
            start_from_classic(source, registry, loop_state)
            assert torch.equal(
                registry.capture()["model_state_dict"]["weight"], weights["weight"][2:]
            )


def resize(rank: int, **position: Any) -> LoadedState:
    restored = replace(RESTORED, position={**POSITION, **position})
    return resized(restored, Path("step-8"), 2, World(rank, 3), Registry())


@pytest.mark.parametrize("position", [{"pass": 0}, {"cycles": [{"batches": 3}]}])
def test_ranks_in_the_middle_of_their_data_are_not_joined(position: dict[str, Any]) -> None:
    """Nobody knows which samples the other ranks have left, so that none is lost or seen twice."""
    with pytest.raises(ConfigError, match=r"2 ranks had a part .* use --nproc-per-node 2"):
        resize(0, **position)


def test_rank_that_was_there_keeps_its_streams_and_a_new_one_its_own() -> None:
    """A new rank with the streams of rank 0 would draw the same numbers as that."""
    old, new = resize(0), resize(2)
    assert old.streams == RESTORED.streams
    assert old.digests.keys() == {"rng", "next_batch", "scheduler_state_dict"}
    assert torch.equal(new.streams["torch"], torch.get_rng_state())
    assert new.position["seed"] == torch.initial_seed()
    assert new.digests.keys() == {"scheduler_state_dict"}
    assert "2 ranks saved it and 3 ranks continue" in old.problems[0]
    assert "rank 2 is new" in new.problems[1]
