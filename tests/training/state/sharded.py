"""Ranks of a sharded model in one process, one after the other, in a group that sends nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

from orchestrator.checkpoint.contents import file_of_rank
from orchestrator.checkpoint.shards import SHARDS_FILE, ShardIndex
from orchestrator.training.state.registered_objects import Registry
from orchestrator.training.state.replicas import Replicas
from orchestrator.training.state.shard_reader import ShardReader
from orchestrator.training.state.stored_files import StoredFiles

PLAN = {"0": ColwiseParallel(), "2": RowwiseParallel()}


@contextmanager
def as_rank(rank: int, size: int) -> Iterator[None]:
    """Be one rank of a group in which every collective returns at once."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    # DTensor remembers results by meshes, which look like those of the rank before.
    DTensor._op_dispatcher.sharding_propagator.propagate_op_sharding.cache_clear()
    getattr(torch._C, "_clear_DTensor_sharding_propagator_cache", lambda: None)()
    try:
        yield
    finally:
        dist.destroy_process_group()


def whole_model() -> nn.Module:
    """The same weights on every rank, whose seven rows do not fit two ranks evenly."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))


def cut_model(plan: str, size: int) -> nn.Module:
    """The part of the model that this rank has under a plan."""
    model = whole_model()
    if plan in ("tp", "both"):
        shape = (size,) if plan == "tp" else (2, size // 2)
        names = ("tp",) if plan == "tp" else ("dp", "tp")
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        # Collectives of this group send nothing: the pieces are cut from the whole weights here.
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        parallelize_module(model, mesh["tp"], PLAN)
        for name, parameter in model.named_parameters():
            if isinstance(parameter, DTensor):
                where = (parameter.device_mesh, parameter.placements)
                cut = distribute_tensor(weights[name], *where, src_data_rank=None)
                parameter.data.to_local().copy_(cut.to_local())
        if plan == "both":
            fully_shard(model, mesh=mesh["dp"])
    elif plan == "hsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("r", "s")))
    elif plan == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    return model


def registry_of(model: nn.Module) -> Registry:
    """The model and an optimizer after a step, registered, with their places known."""
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = parameter.detach() * 2
    optimizer.step()
    registry = Registry()
    registry.add({"model": model, "optimizer": optimizer})
    registry.find_shards()
    return registry


def state_of(registry: Registry) -> dict[str, Any]:
    """The state of a run with these objects."""
    entries = {"epoch": 1, "step": 7, "state": {}, "rng": {}, "data": {}}
    return {**entries, **registry.capture()}


def save(directory: Path, plan: str, size: int) -> None:
    """Write the files of a checkpoint, a rank after the other, and their index."""
    parts = []
    for rank in range(size):
        with as_rank(rank, size):
            registry = registry_of(cut_model(plan, size))
            state, file = state_of(registry), file_of_rank(rank)
            own = Replicas(registry.objects, registry.sharding).own(state)
            torch.save(own if rank else state, directory / file)
            if registry.sharding is not None:
                parts.append(registry.sharding.index_of(state, file))
    index = ShardIndex.joined(parts)
    index.check_complete()
    (directory / SHARDS_FILE).write_bytes(index.to_json())


def stored_in(directory: Path) -> StoredFiles:
    """The files of a checkpoint that ``save`` has written."""
    paths = {path.name: path for path in directory.iterdir()}
    text = paths.pop(SHARDS_FILE).read_bytes()
    return StoredFiles(paths, lambda: ShardIndex.from_json(text, paths))


def reader_of(files: StoredFiles) -> ShardReader:
    """A reader of the sharded tensors in these files."""
    index = files.read_index()
    assert index is not None
    return ShardReader(index, files.load)
