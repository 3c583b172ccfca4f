"""From a SIGKILL of the trainer to the completion of the next step."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from orchestrator.rundir import RunDir
from tests.benchmarks.figures import Figure

KILLS = 20
DEADLINE_SECONDS = 60.0
STATE_BYTES = 10 << 20

# Weights and Adam's two moments are the state. Each life notes when its first step was completed.
TRAINER = f"""
import os, sys, time, torch
from orchestrator.training import Session
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Linear({STATE_BYTES // 12 // 1024}, 1024)
optimizer = torch.optim.Adam(model.parameters())
x = torch.randn(4, {STATE_BYTES // 12 // 1024})
first = True
with Session(model=model, optimizer=optimizer) as session:
    for step in session.steps(1_000_000):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        session.step()
        if first:
            first = False
            with open(sys.argv[1], "a") as file:
                file.write(f"{{os.getpid()}} {{time.monotonic_ns()}}\\n")
        time.sleep(0.01)
"""


def restarts(root: Path) -> list[Figure]:
    """With a spare that is ready, and without one."""
    spare = _median_seconds(root / "spare", "--spare")
    cold = _median_seconds(root / "cold", "--no-spare")
    return [Figure("10 MB: SIGKILL to the next step", "s", spare, cold, "cold start", 0.5)]


def _median_seconds(root: Path, option: str) -> float:
    root.mkdir(parents=True)
    (root / "train.py").write_text(TRAINER)
    run, notes = RunDir(root / "run"), root / "notes"
    command = [sys.executable, "-m", "orchestrator", "run", "--run-dir", str(run.root), option]
    supervisor = subprocess.Popen(
        [*command, "--", sys.executable, "train.py", str(notes)],
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    times = []
    try:
        for kill in range(KILLS):
            pid, _ = _first_step(notes, kill)
            _wait_for_spare(run, option == "--spare")
            killed = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            times.append((_first_step(notes, kill + 1)[1] - killed) / 1e9)
    finally:
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait()
    return statistics.median(times)


def _first_step(notes: Path, life: int) -> tuple[int, int]:
    """Process and time of the first step of a life, counted from 0."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        lines = notes.read_text().splitlines() if notes.exists() else []
        if len(lines) > life:
            pid, at = map(int, lines[life].split())
            return pid, at
        time.sleep(0.005)
    raise TimeoutError(f"life {life} made no step")


def _wait_for_spare(run: RunDir, wanted: bool) -> None:
    """Until it is ready; without one, so long that the first snapshot has been taken."""
    if not wanted:
        time.sleep(2.0)
        return
    command = [sys.executable, "-m", "orchestrator", "status", str(run.root), "--json"]
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        status = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        if (status["spare"] or {}).get("state") == "ready":
            time.sleep(0.5)
            return
        time.sleep(0.1)
    raise TimeoutError(f"no spare became ready: {status['spare']}")
