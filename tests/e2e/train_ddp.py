"""A DDP training of several ranks, as a user would write it for torchrun, with a session in it."""

import argparse
import random
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from orchestrator.training import Session

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--samples", type=int, default=64)
parser.add_argument("--step-seconds", type=float, default=0.0)
parser.add_argument("--unused", action="store_true", help="find unused parameters")
parser.add_argument("--run-at", type=int, help="the step at which --code runs")
parser.add_argument("--code", default="pass")
parser.add_argument("--result", type=Path, help="write each rank's final state beside this path")
args = parser.parse_args()

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(rank)
random.seed(rank)


class Noisy(Dataset[torch.Tensor]):
    """Points with new random noise at each access, as with data augmentation."""

    def __len__(self) -> int:
        return args.samples

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((8,), float(index)) / args.samples + torch.randn(8) * random.random()


# Batch normalisation has statistics that differ between the ranks, if nothing brings them together.
warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
net = torch.nn.Sequential(
    torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1)
)
model = DistributedDataParallel(net, broadcast_buffers=False, find_unused_parameters=args.unused)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
data = Noisy()
loader = DataLoader(data, batch_size=4, sampler=DistributedSampler(data))

with Session(model=model, optimizer=optimizer, scheduler=scheduler) as session:
    print(f"rank {session.rank} of {session.world_size} at step {session.global_step}", flush=True)
    for epoch in session.epochs(args.epochs):
        for batch in session.batches(loader):
            if session.global_step == args.run_at:
                exec(args.code)
            loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            time.sleep(args.step_seconds)
            session.step(loss=loss)
        scheduler.step()
        if session.is_main:
            print(f"epoch {epoch} done", flush=True)

if args.result:
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state | {"random": torch.rand(3)}, f"{args.result}.{rank}")
dist.destroy_process_group()
