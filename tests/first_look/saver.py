"""A script that saves for itself in one of several ways, without torch, until it is ended.

saver.py WAY [--resume FILE]
"""

import argparse
import os
import pickle
import signal
import sys
import time
from pathlib import Path

# Longer than a look waits for further files of a save.
PAUSE_SECONDS = 1.5


def save(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        with open(name, "wb") as file:
            pickle.dump({"weights": [0.5] * 1000}, file)


def train(way: str) -> None:
    starts = len(list(Path("out").glob("exp*")))
    for epoch in range(1000):
        match way:
            case "one" | "stubborn" | "fails":
                save("out/last.pkl")
            case "numbered":
                save(f"out/model_{epoch}.pkl")
            case "directories":
                save(f"out/step_{epoch}/model.pkl", f"out/step_{epoch}/optimizer.pkl")
            case "experiments":
                save(f"out/exp{starts + 1}/last.pkl")
            case "pairs":
                save(f"out/g_{epoch}.pkl", f"out/d_{epoch}.pkl")
            case "slow" if epoch == 0:
                save("out/last.pkl")
                Path("saved").touch()
        time.sleep(PAUSE_SECONDS)
        if way == "fails":
            sys.exit(3)


def main() -> None:
    if sys.argv[1] == "unhelpful" and "--help" in sys.argv:
        raise RuntimeError("no help")
    parser = argparse.ArgumentParser()
    parser.add_argument("way")
    if sys.argv[1] != "no-option":
        parser.add_argument("--resume")
    args = parser.parse_args()
    if args.way == "on-sigterm":
        signal.signal(signal.SIGTERM, lambda *_: (save("out/last.pkl"), sys.exit(0)))
    if args.way == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path("pid").write_text(str(os.getpid()))
    way = {"unhelpful": "one", "no-option": "one", "on-sigterm": "one"}.get(args.way, args.way)
    train(way)


main()
