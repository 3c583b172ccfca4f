"""The CNN of digits.py, trained by several processes with DistributedDataParallel.

Two processes, on the CPU where there are not two GPUs; or one for each GPU:

    orchestrator run --nproc-per-node 2 -- python examples/ddp_digits.py
    orchestrator run --nproc-per-node gpu -- python examples/ddp_digits.py

Stop it anywhere, or kill any of its processes: all of them go on from the same step.
"""

import argparse
import os

import torch
import torch.distributed as dist
from digits import ShiftedDigits, build_model, load_split
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from orchestrator import Session


def main() -> None:
    """Train on all ranks, and evaluate on rank 0 after every epoch."""
    parser = argparse.ArgumentParser(description="Train a small CNN with several processes.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32, help="of each process")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    on_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    dist.init_process_group("nccl" if on_gpus else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)

    # DDP gives every rank the weights of rank 0; dropout and shifts must differ between the ranks.
    torch.manual_seed(args.seed + dist.get_rank())
    train_images, test_images, train_labels, test_labels = load_split()
    dataset = ShiftedDigits(train_images, train_labels)
    sampler = DistributedSampler(dataset, seed=args.seed)
    loader = DataLoader(dataset, args.batch_size, sampler=sampler)
    model = DistributedDataParallel(build_model().to(device))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)

    with Session(model=model, optimizer=optimizer, scheduler=scheduler) as session:
        for epoch in session.epochs(args.epochs):
            model.train()
            for images, labels in session.batches(loader):
                loss = criterion(model(images.to(device)), labels.to(device))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                session.step(loss=loss)
            scheduler.step()
            if session.is_main:
                # Without the wrapper, whose forward pass may talk to the other ranks.
                accuracy = evaluate(model.module, test_images.to(device), test_labels.to(device))
                session.poll(accuracy=accuracy)
                print(f"epoch {epoch + 1:2d}  test accuracy {accuracy:.4f}", flush=True)
    dist.destroy_process_group()


def evaluate(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the accuracy on the test set."""
    model.eval()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


if __name__ == "__main__":
    main()
