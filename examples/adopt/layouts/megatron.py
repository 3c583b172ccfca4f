"""Saves as Megatron-LM does: iter_NNNNNNN/mp_rank_NN/, and latest_checkpointed_iteration.txt.

python megatron.py --steps 600

One process writes the directories of two tensor-parallel ranks. It resumes from the iteration that
the text file names, as `load_checkpoint()` does.
"""

import argparse
import time
from pathlib import Path

import torch

RANKS = 2
SAVE_EVERY = 20
SAVE_SECONDS = 0.3
TRACKER = "latest_checkpointed_iteration.txt"


def save(directory: Path, step: int, model: torch.nn.Module) -> None:
    """Write each rank's part of the weights, then the iteration into the text file."""
    for rank, part in enumerate(model.weight.detach().chunk(RANKS)):
        time.sleep(SAVE_SECONDS / RANKS)  # as long as a larger model takes
        folder = directory / f"iter_{step:07d}" / f"mp_rank_{rank:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        sizes = argparse.Namespace(
            tensor_model_parallel_size=RANKS, pipeline_model_parallel_size=1, world_size=RANKS
        )
        state = {"model": {"weight": part.clone()}, "iteration": step, "args": sizes}
        torch.save(state, folder / "model_optim_rng.pt")
    (directory / TRACKER).write_text(str(step))


def load(directory: Path, model: torch.nn.Module) -> int:
    """Return the iteration that the text file names, with all its parts loaded."""
    step = int((directory / TRACKER).read_text())
    folder = directory / f"iter_{step:07d}"
    with torch.serialization.safe_globals([argparse.Namespace]):
        states = [
            torch.load(folder / f"mp_rank_{rank:02d}" / "model_optim_rng.pt")
            for rank in range(RANKS)
        ]
    if {state["iteration"] for state in states} != {step}:
        raise SystemExit("ranks of different iterations")
    with torch.no_grad():
        model.weight.copy_(torch.cat([state["model"]["weight"] for state in states]))
    return step


def main() -> None:
    """Train, save every few iterations, and go on from what the text file names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--output", type=Path, default=Path("out"))
    args = parser.parse_args()
    torch.manual_seed(0)
    model = torch.nn.Linear(256, 256, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = load(args.output, model) if (args.output / TRACKER).exists() else 0
    while step < args.steps:
        step += 1
        optimizer.zero_grad()
        loss = model(torch.randn(8, 256)).square().mean()
        loss.backward()
        optimizer.step()
        print(f"iteration {step} loss {loss.item():.4f}", flush=True)
        time.sleep(0.05)
        if step % SAVE_EVERY == 0:
            save(args.output, step, model)


if __name__ == "__main__":
    main()
