"""A training whose model is sharded over the ranks, as a user would write it, with a session."""

import argparse
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from orchestrator.training import Session

parser = argparse.ArgumentParser()
parser.add_argument(
    "--plan", default="fsdp", help="fsdp, hsdp, both of fsdp and tp; or one that is refused"
)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--step-seconds", type=float, default=0.0)
parser.add_argument("--run-at", type=int, help="the step at which --code runs")
parser.add_argument("--code", default="pass")
parser.add_argument("--result", type=Path, help="write each rank's final state beside this path")
args = parser.parse_args()

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
# Three rows are not as many for each of two ranks; nor is half of ten.
model = torch.nn.Sequential(torch.nn.Linear(5, 10), torch.nn.Tanh(), torch.nn.Linear(10, 3))
plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
if args.plan == "fsdp":
    fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
elif args.plan == "hsdp":
    mesh = init_device_mesh("cpu", (size, 1), mesh_dim_names=("replicas", "shards"))
    fully_shard(model, mesh=mesh)
elif args.plan == "both":
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    parallelize_module(model, mesh["tp"], plan)
    fully_shard(model, mesh=mesh["dp"])
elif args.plan == "partial":
    mesh = init_device_mesh("cpu", (size,))
    weight = DTensor.from_local(torch.ones(2, 2), mesh, [Partial()])
    model.register_parameter("sum", torch.nn.Parameter(weight))
elif args.plan == "fsdp1":
    model = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
torch.manual_seed(rank)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
dataset = TensorDataset(torch.randn(32, 5, generator=torch.Generator().manual_seed(1)))
replicas = (size, rank) if args.plan in ("fsdp", "hsdp") else (1, 0)
sampler: DistributedSampler[torch.Tensor] = DistributedSampler(dataset, *replicas)
loader = DataLoader(dataset, batch_size=4, sampler=sampler)

with Session(model=model, optimizer=optimizer, scheduler=scheduler) as session:
    for _ in session.epochs(args.epochs):
        for (inputs,) in session.batches(loader):
            if session.global_step == args.run_at:
                exec(args.code)
            loss = model(inputs).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            time.sleep(args.step_seconds)
            session.step()
        scheduler.step()

if args.result:

    def whole(value: object) -> object:
        if isinstance(value, DTensor):
            return value.full_tensor()
        if isinstance(value, dict):
            return {key: whole(item) for key, item in value.items()}
        return [whole(item) for item in value] if isinstance(value, list) else value

    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({"random": torch.rand(3), **whole(states)}, f"{args.result}.{rank}")
dist.destroy_process_group()
