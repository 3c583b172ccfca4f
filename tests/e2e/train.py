"""The training script that the end-to-end tests run, as a user would write it."""

import argparse
import random
import sys
import time
import types
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from orchestrator.training import Session

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--samples", type=int, default=64)
parser.add_argument("--workers", type=int, default=0)
parser.add_argument("--persistent", action="store_true")
parser.add_argument("--ballast", type=int, default=0, help="bytes of further state")
parser.add_argument("--step-seconds", type=float, default=0.0)
parser.add_argument("--fail-at", type=int, help="raise an exception instead of this step")
parser.add_argument("--run-at", type=int, help="the step at which --code runs")
parser.add_argument("--code", default="pass")
parser.add_argument("--result", type=Path, help="write the final weights here")
args = parser.parse_args()

# The first optimizer would import torch._dynamo, which takes longer than torch itself. This script
# compiles nothing, and a hundred tests start it.
if "torch._dynamo" not in sys.modules:
    stand_in = types.ModuleType("torch._dynamo")
    stand_in.graph_break = lambda: None  # type: ignore[attr-defined]
    stand_in.disable = lambda function, *_, **__: function  # type: ignore[attr-defined]
    sys.modules["torch._dynamo"] = torch._dynamo = stand_in

torch.manual_seed(0)
random.seed(0)
torch.set_num_threads(1)


class Noisy(Dataset[torch.Tensor]):
    """Points with new random noise at each access, as with data augmentation."""

    def __len__(self) -> int:
        return args.samples

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((8,), float(index)) / args.samples + torch.randn(8) * random.random()


model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
loader = DataLoader(
    Noisy(),
    batch_size=4,
    shuffle=True,
    num_workers=args.workers,
    persistent_workers=args.persistent,
)

ballast = {"ballast": torch.nn.Linear(args.ballast // 4, 1)} if args.ballast else {}

with Session(model=model, optimizer=optimizer, scheduler=scheduler, **ballast) as session:
    print(f"begins at step {session.global_step}", flush=True)
    for epoch in session.epochs(args.epochs):
        for batch in session.batches(loader):
            if session.global_step == args.fail_at:
                raise ValueError(f"bad sample at {time.time()}")
            if session.global_step == args.run_at:
                exec(args.code)
            loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            time.sleep(args.step_seconds)
            session.step(loss=loss)
        scheduler.step()
        print(f"epoch {epoch} done", flush=True)

if args.result:
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, args.result)
print("after the loop", flush=True)
