"""Costs that do not depend on the state: a step, the shortest run, an idle supervisor."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from orchestrator.rundir.paths import RunDir
from orchestrator.training import Session
from tests.benchmarks.figures import Figure, median_seconds

STEPS = 100_000
IDLE_SECONDS = 20.0
# Thousands of names are polled once a minute: after the first scans, two minutes hold two of them.
SETTLING_SECONDS = 20.0
WATCHING_SECONDS = 120.0
FOREIGN_FILES = 10_000
START_SECONDS = 60.0
STOP_SECONDS = 60.0

TRAINER = """
import time, torch
from orchestrator.training import Session
with Session(model=torch.nn.Linear(2, 1)) as session:
    session.checkpoint()
    time.sleep(600)
"""


def step_cost(root: Path) -> list[Figure]:
    """Measure session.step() when nothing is due, against a call of an empty function."""
    loss = torch.zeros(())

    def empty(**metrics: object) -> None:
        pass

    def seconds_of(step: Callable[..., None]) -> float:
        return median_seconds(lambda: [step(loss=loss) for _ in range(STEPS)]) / STEPS

    with Session(run_dir=root, model=torch.nn.Linear(2, 1)) as session:
        session.step(loss=loss)  # the first step of a run is saved
        cost = seconds_of(session.step)
    floor = seconds_of(empty)
    return [Figure("session.step(), nothing due", "us", cost * 1e6, floor * 1e6, "empty call", 5.0)]


def shortest_run(root: Path) -> list[Figure]:
    """Measure `orchestrator run -- true`, against a start and exit of Python."""
    command = [sys.executable, "-m", "orchestrator", "run", "--run-dir", str(root), "--", "true"]
    run = median_seconds(lambda: subprocess.run(command, check=True, capture_output=True))
    python = [sys.executable, "-c", "pass"]
    floor = median_seconds(lambda: subprocess.run(python, check=True))
    return [Figure("orchestrator run -- true", "s", run, floor, "python -c pass", 0.5)]


def idle_supervisor(root: Path) -> list[Figure]:
    """Measure the supervisor's memory and share of a core while the trainer sleeps."""
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
        share = share_of_a_core(process)
        mebibytes = process.memory_info().rss / 2**20
        floor_mebibytes = floor.memory_info().rss / 2**20
    finally:
        for running in (supervisor, bare):
            stop(running)
    return [
        Figure("supervisor, resident", "MiB", mebibytes, floor_mebibytes, "import asyncio", 45.0),
        Figure("supervisor, idle", "% of a core", share, 0.0, "nothing", 0.5),
    ]


def watching_foreign_files(root: Path) -> list[Figure]:
    """Measure the share of a core that adopt mode adds where a directory has many other files.

    The supervisors run at the same time, so that other load is the same for all of them.
    """
    empty = _Adopting(root / "empty", [])
    foreign = _Adopting(root / "foreign", _names("sample_{}.png"))
    matching = _Adopting(root / "matching", _names("checkpoint-0{}.json"))
    watching = (empty, foreign, matching)
    try:
        for one in watching:
            one.save_twice()
        time.sleep(SETTLING_SECONDS)
        before = [one.cpu_seconds() for one in watching]
        time.sleep(WATCHING_SECONDS)
        used = [one.cpu_seconds() - was for one, was in zip(watching, before, strict=True)]
    finally:
        for one in watching:
            stop(one.supervisor)
    floor, *shares = (seconds / WATCHING_SECONDS * 100 for seconds in used)
    added = [share - floor for share in shares]
    return [
        Figure("adopt mode, idle", "% of a core", floor, 0.0, "nothing", 0.5),
        Figure(f"{FOREIGN_FILES} foreign files add", "% of a core", added[0], 0.0, "nothing", 0.1),
        Figure("as many that match add", "% of a core", added[1], 0.0, "nothing", 0.5),
    ]


def _names(template: str) -> list[str]:
    return [template.format(number) for number in range(FOREIGN_FILES)]


class _Adopting:
    """A supervisor that adopts what is saved in a directory with these files."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self._out, self._run = root / "out", root / "run"
        self._out.mkdir(parents=True)
        for name in names:
            (self._out / name).touch()
        command = [sys.executable, "-m", "orchestrator", "run", "--run-dir", str(self._run)]
        self.supervisor = subprocess.Popen(
            [*command, "--adopt", f"{self._out}/checkpoint-*.json", "--", "sleep", "600"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def save_twice(self) -> None:
        """Save two checkpoints; the second one is of the script, as in a run that trains."""
        for count in (1, 2):
            (self._out / f"checkpoint-{FOREIGN_FILES + count}.json").write_text("{}")
            wait_for_checkpoint(self._run, count)

    def cpu_seconds(self) -> float:
        """Return the processor time of the supervisor so far."""
        return sum(psutil.Process(self.supervisor.pid).cpu_times()[:2])


def share_of_a_core(process: psutil.Process) -> float:
    """Return the percentage of a core that a process uses during the next seconds."""
    before = sum(process.cpu_times()[:2])
    time.sleep(IDLE_SECONDS)
    share: float = (sum(process.cpu_times()[:2]) - before) / IDLE_SECONDS * 100
    return share


def wait_for_checkpoint(root: Path, count: int = 1) -> None:
    deadline = time.monotonic() + START_SECONDS
    while len(list(RunDir(root).checkpoints.glob("step-*"))) < count:
        if time.monotonic() > deadline:
            sys.exit(f"no checkpoint came within {START_SECONDS:g} s")
        time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
