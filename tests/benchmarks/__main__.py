"""Measures what issue by issue was promised, and prints a table with the floor beside each figure.

python -m tests.benchmarks [--json FILE]
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from orchestrator.rundir import RunDir
from orchestrator.training import Session

REPEATS = 9
STEPS = 100_000
IDLE_SECONDS = 20.0
START_SECONDS = 60.0

TRAINER = """
import time, torch
from orchestrator.training import Session
with Session(model=torch.nn.Linear(2, 1)) as session:
    session.checkpoint()
    time.sleep(600)
"""


@dataclass
class Figure:
    """One measured figure, the target it is held against, and the floor of the same run."""

    name: str
    unit: str
    value: float
    target: float
    floor: float
    floor_name: str


def median_seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def step_cost(root: Path) -> Figure:
    """session.step() when nothing is due, against calling a function that does nothing."""
    loss = torch.zeros(())

    def nothing(**metrics: object) -> None:
        pass

    def call(step: Callable[..., None]) -> float:
        return median_seconds(lambda: [step(loss=loss) for _ in range(STEPS)]) / STEPS

    with Session(run_dir=root, model=torch.nn.Linear(2, 1)) as session:
        session.step(loss=loss)  # the first step of a run is saved
        cost = call(session.step)
    floor = call(nothing)
    return Figure("session.step(), nothing due", "us", cost * 1e6, 5.0, floor * 1e6, "empty call")


def shortest_run(root: Path) -> Figure:
    """`orchestrator run -- true`, against starting and ending Python."""
    command = [sys.executable, "-m", "orchestrator", "run", "--run-dir", str(root), "--", "true"]
    run = median_seconds(lambda: subprocess.run(command, check=True, capture_output=True))
    python = [sys.executable, "-c", "pass"]
    floor = median_seconds(lambda: subprocess.run(python, check=True))
    return Figure("orchestrator run -- true", "s", run, 0.5, floor, "python -c pass")


def idle_supervisor(root: Path) -> list[Figure]:
    """Resident memory and share of a core while the trainer does nothing."""
    bare = subprocess.Popen(
        [sys.executable, "-c", "import asyncio, time; time.sleep(600)"], stdout=subprocess.DEVNULL
    )
    command = [sys.executable, "-m", "orchestrator", "run", "--run-dir", str(root)]
    supervisor = subprocess.Popen(
        [*command, "--", sys.executable, "-c", TRAINER],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_checkpoint(root)
        process, floor = psutil.Process(supervisor.pid), psutil.Process(bare.pid)
        before = sum(process.cpu_times()[:2])
        time.sleep(IDLE_SECONDS)
        share = (sum(process.cpu_times()[:2]) - before) / IDLE_SECONDS * 100
        mebibytes = process.memory_info().rss / 2**20
        floor_mebibytes = floor.memory_info().rss / 2**20
    finally:
        for running in (supervisor, bare):
            running.send_signal(signal.SIGTERM)
            running.wait()
    return [
        Figure("supervisor, resident", "MiB", mebibytes, 45.0, floor_mebibytes, "import asyncio"),
        Figure("supervisor, idle", "% of a core", share, 0.5, 0.0, "nothing"),
    ]


def wait_for_checkpoint(root: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not list(RunDir(root).checkpoints.glob("step-*")):
        if time.monotonic() > deadline:
            sys.exit(f"no checkpoint came within {START_SECONDS:g} s")
        time.sleep(0.1)


def show(figures: list[Figure]) -> None:
    title = f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    table = Table(title=title)
    for name in ("what", "measured", "target", "met", "floor"):
        table.add_column(name)
    for figure in figures:
        table.add_row(
            figure.name,
            f"{figure.value:.3g} {figure.unit}",
            f"at most {figure.target:g}",
            "yes" if figure.value <= figure.target else "NO",
            f"{figure.floor:.3g} ({figure.floor_name})",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        root = Path(directory)
        figures = [
            step_cost(root / "step"),
            shortest_run(root / "true"),
            *idle_supervisor(root / "idle"),
        ]
    show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=2))


if __name__ == "__main__":
    main()
