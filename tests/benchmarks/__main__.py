"""Measures the costs of a run and prints a table: each figure, its floor and its target.

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

from tests.benchmarks import age, exactness, fixed_costs, kills, snapshots
from tests.benchmarks.figures import Figure, show, write_json

GROUPS: dict[str, Callable[[Path], list[Figure]]] = {
    "step": fixed_costs.step_cost,
    "run": fixed_costs.shortest_run,
    "idle": fixed_costs.idle_supervisor,
    "adopt": fixed_costs.watching_foreign_files,
    "resume": exactness.exactness_costs,
    "kill": kills.restarts,
    "tiny": snapshots.tiny,
    **{size.name.replace(" ", ""): partial(snapshots.figures_of, size) for size in snapshots.SIZES},
    "overhead": snapshots.overheads,
    "goodput": kills.goodput,
    "age": age.costs_of_age,
    "cuda": snapshots.on_cuda,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    arguments = parser.parse_args()
    figures: list[Figure] = []
    notes = []
    failed = False
    if not torch.cuda.is_available():
        notes.append("No CUDA device was found: its rows are left out.")
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
                # After each group, so that an interrupted run keeps what it has measured.
                write_json(arguments.json, figures, notes)
            seconds = time.monotonic() - began
            print(f"{name}: {seconds:.0f} s, load before {load:.1f}", file=sys.stderr, flush=True)
    show(figures, notes)
    if arguments.json:
        write_json(arguments.json, figures, notes)
    sys.exit(failed)


if __name__ == "__main__":
    main()
