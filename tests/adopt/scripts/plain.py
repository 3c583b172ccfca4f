"""A script as many are: it saves with torch.save, and takes --resume.

python plain.py [--resume FILE] [--numbered] [--by-itself] [--on-sigterm]
"""

import argparse
import os
import signal
import sys
import time

import torch
from killed_save import arm


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--resume")
    parser.add_argument("--numbered", action="store_true", help="a new file for each save")
    parser.add_argument("--by-itself", action="store_true", help="resume from out/last.pt if any")
    parser.add_argument("--on-sigterm", choices=["save", "ignore"])
    parser.add_argument("--kill-save-at", type=int, help="die in the middle of that one")
    parser.add_argument("--fail-at", type=int)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pause", type=float, default=0.0)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Dropout(), torch.nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step = 0
    if args.by_itself and os.path.exists("out/last.pt"):
        args.resume = "out/last.pt"
    if args.resume:
        saved = torch.load(args.resume)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
        step = saved["step"]
    print(f"begins at {step}", flush=True)

    def save() -> None:
        os.makedirs("out", exist_ok=True)
        if step == args.kill_save_at:
            arm(9000)
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "step": step,
        }
        torch.save(state, f"out/model_{step:04d}.pt" if args.numbered else "out/last.pt")

    asked_to_end = []
    if args.on_sigterm:
        signal.signal(signal.SIGTERM, lambda *_: asked_to_end.append(True))
    while step < args.steps:
        loss = model(torch.randn(8, 64)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        time.sleep(args.pause)
        if step == args.fail_at:
            raise RuntimeError("a bug")
        if asked_to_end and args.on_sigterm == "save":
            save()
            print("saved for the end", flush=True)
            sys.exit(0)
        if step % 5 == 0:
            save()
    torch.save(model.state_dict(), "final.pt")


main()
