"""Saves as DeepSpeed's ZeRO does: global_stepN/ with the files of all ranks, and `latest`.

python deepspeed.py --steps 600

One process writes the files of two ranks. It resumes from what `latest` names, as
`load_checkpoint()` does without a tag.
"""

import argparse
import time
from pathlib import Path

import torch

RANKS = 2
SAVE_EVERY = 20
SAVE_SECONDS = 0.3


def save(directory: Path, step: int, model: torch.nn.Module, moments: torch.Tensor) -> None:
    """Write the model's file, then each rank's optimizer state, then the name into `latest`."""
    folder = directory / f"global_step{step}"
    folder.mkdir(parents=True, exist_ok=True)
    state = {"module": model.state_dict(), "global_steps": step, "dp_world_size": RANKS}
    torch.save(state, folder / "mp_rank_00_model_states.pt")
    for rank, part in enumerate(moments.chunk(RANKS)):
        time.sleep(SAVE_SECONDS / RANKS)  # as long as a larger model takes
        zero = {"optimizer_state_dict": {"exp_avg": part.clone(), "step": step}}
        torch.save(zero, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    (directory / "latest").write_text(folder.name)


def load(directory: Path, model: torch.nn.Module) -> tuple[int, torch.Tensor]:
    """Return the step and the moments of the checkpoint that `latest` names."""
    folder = directory / (directory / "latest").read_text()
    state = torch.load(folder / "mp_rank_00_model_states.pt")
    model.load_state_dict(state["module"])
    parts = [
        torch.load(folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        for rank in range(RANKS)
    ]
    steps = {part["optimizer_state_dict"]["step"] for part in parts}
    if steps != {state["global_steps"]}:
        raise SystemExit(f"ranks of {steps} beside a model of {state['global_steps']}")
    return state["global_steps"], torch.cat([p["optimizer_state_dict"]["exp_avg"] for p in parts])


def main() -> None:
    """Train, save every few steps, and go on from what `latest` names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--output", type=Path, default=Path("out"))
    args = parser.parse_args()
    torch.manual_seed(0)
    model = torch.nn.Linear(256, 256)
    moments = torch.zeros(256 * 256)
    step = 0
    if (args.output / "latest").exists():
        step, moments = load(args.output, model)
    while step < args.steps:
        step += 1
        loss = model(torch.randn(8, 256)).square().mean()
        loss.backward()
        with torch.no_grad():
            moments.mul_(0.9).add_(model.weight.grad.flatten())
            model.weight -= 0.1 * moments.view_as(model.weight)
        model.zero_grad()
        print(f"step {step} loss {loss.item():.4f}", flush=True)
        time.sleep(0.05)
        if step % SAVE_EVERY == 0:
            save(args.output, step, model, moments)


if __name__ == "__main__":
    main()
