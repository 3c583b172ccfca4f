"""The character GPT of char_gpt.py, its weights and optimizer sharded over several processes.

Two processes, on the CPU where there are not two GPUs; or one for each GPU:

    orchestrator run --nproc-per-node 2 -- python examples/fsdp_char_gpt.py
    orchestrator run --nproc-per-node gpu -- python examples/fsdp_char_gpt.py --size medium

Stop it anywhere, or kill any of its processes: all of them go on from the same step. Another
number of processes goes on with it too:

    orchestrator run --nproc-per-node 3 -- python examples/fsdp_char_gpt.py
"""

import argparse
import os

import torch
import torch.distributed as dist
from char_gpt import SIZES, CharGPT, draw_batch, read_standard_library, warmup_then_cosine
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from orchestrator import Session


def main() -> None:
    """Train on all ranks; rank 0 prints."""
    parser = argparse.ArgumentParser(description="Train a sharded character GPT.")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8, help="of each process")
    parser.add_argument("--context", type=int, default=128, help="characters the model sees")
    parser.add_argument("--megabytes", type=float, default=4.0, help="how much text to read")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    on_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpus else "gloo")

    torch.manual_seed(args.seed)  # every rank makes the same weights, and keeps its part of them
    size = SIZES[args.size]
    model = CharGPT(size, args.context).to(device)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    torch.manual_seed(args.seed + dist.get_rank())  # every rank draws other text
    text = read_standard_library(int(args.megabytes * 1e6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.learning_rate, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_then_cosine(step, args.steps)
    )

    with Session(model=model, optimizer=optimizer, scheduler=scheduler) as session:
        for step in session.steps(args.steps):
            inputs, targets = draw_batch(text, args.batch_size, args.context)
            logits = model(inputs.to(device))
            loss = F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            if session.is_main and (step + 1) % 50 == 0:
                print(f"step {step + 1}  loss {loss.item():.4f}", flush=True)
            session.step(loss=loss)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
