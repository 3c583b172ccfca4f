"""Measures what issue by issue was promised, and prints a table with the floor beside each figure.

python -m tests.benchmarks [--json FILE] [--only NAME...]
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from tests.benchmarks import kills, resume, small, snapshots
from tests.benchmarks.figures import Figure, show, write_json

GROUPS: dict[str, Callable[[Path], list[Figure]]] = {
    "step": small.step_cost,
    "run": small.shortest_run,
    "idle": small.idle_supervisor,
    "adopt": small.watching_foreign_files,
    "resume": resume.exactness,
    "kill": kills.restarts,
    "tiny": snapshots.tiny,
    **{size.name.replace(" ", ""): partial(snapshots.figures_of, size) for size in snapshots.SIZES},
    "overhead": snapshots.overheads,
    "goodput": kills.goodput,
    "cuda": snapshots.on_cuda,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    arguments = parser.parse_args()
    figures: list[Figure] = []
    notes = []
    failed = False
    if not torch.cuda.is_available():
        notes.append("No CUDA device here: its rows are left out.")
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        for name in arguments.only:
            load, began = os.getloadavg()[0], time.monotonic()
            try:
                found = GROUPS[name](Path(directory) / name)
            except Exception as error:
                failed = True
                notes.append(f"{name}: {error}")
                continue
            for figure in found:
                figure.load = load
            figures += found
            if arguments.json:
                # After each group: whoever interrupts the run keeps what was measured.
                write_json(arguments.json, figures, notes)
            seconds = time.monotonic() - began
            print(f"{name}: {seconds:.0f} s, load before {load:.1f}", file=sys.stderr, flush=True)
    show(figures, notes)
    if arguments.json:
        write_json(arguments.json, figures, notes)
    sys.exit(failed)


if __name__ == "__main__":
    main()
