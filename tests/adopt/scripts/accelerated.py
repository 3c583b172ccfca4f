"""Saves with Accelerate's save_state.

python accelerated.py [DIRECTORY]

With --kill-save it dies in the second save of the first attempt.
"""

import argparse
import time

import accelerate
import torch
from killed_save import arm


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("resume", nargs="?")
    parser.add_argument("--kill-save", action="store_true")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--pause", type=float, default=0.0)
    args = parser.parse_args()

    accelerate.utils.set_seed(0)
    accelerator = accelerate.Accelerator(cpu=True)
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.Adam(model.parameters())
    model, optimizer = accelerator.prepare(model, optimizer)
    step = 0
    if args.resume:
        accelerator.load_state(args.resume)
        step = int(args.resume.rpartition("_")[2])
    print("begins at", step, flush=True)
    while step < args.steps:
        loss = model(torch.randn(8, 64)).pow(2).mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        time.sleep(args.pause)
        if args.kill_save and step == 10:
            arm(20_000)  # the weights have 17 kB, the optimizer's state twice that
        if step % 5 == 0:
            accelerator.save_state(f"out/step_{step}")
    torch.save(accelerator.unwrap_model(model).state_dict(), "final.pt")


main()
