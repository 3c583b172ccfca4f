"""Costs of a SIGKILL of the trainer: the time to the next step, and the steps lost in minutes."""

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.ipc.messages import Connection
from orchestrator.rundir.lock import lock_owner
from orchestrator.rundir.paths import RunDir
from tests.benchmarks.figures import Figure, paired
from tests.benchmarks.killed_trainer import AttemptRecord, save
from tests.benchmarks.workload import Bytes, Workload

ROOT = Path(__file__).parents[2]
SIZES = {"10 MB": 10_000_000, "600 MB": 600_000_000}
LARGE_BYTES = 100_000_000
KILLS = 20
SCRIPT_RUNS = 5
DEADLINE_SECONDS = 120.0
READY_SECONDS = 1.0
POLL_SECONDS = 0.002

# Three minutes of kills, in rounds, because the speed of a machine changes over minutes.
ROUNDS = 3
KILLS_PER_ROUND = 3
KILL_EVERY_SECONDS = 20.0
BASE_SECONDS = 15.0
# By default glibc decides per process, from its earlier allocations, whether it returns large
# temporaries to the kernel. Where it does, page faults make steps up to half as long again.
STEADY_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}

TRAINER = "tests.benchmarks.killed_trainer"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
# So rare that no save disturbs a measurement of restarts.
RARE_SAVE_SECONDS = 3600.0
NO_VARIABLES: Mapping[str, str] = {}


@dataclass(frozen=True)
class Work:
    """The result of some time of training under kills."""

    steps_per_second: float
    """Without the repeated steps."""
    repeated_steps: int
    downtime_seconds: float
    """The sum from each kill to the end of the next step."""


class Job:
    """A training job under a command that restarts it; leaving the context ends it."""

    def __init__(
        self,
        root: Path,
        words: list[str],
        method: str,
        *arguments: object,
        variables: Mapping[str, str] = NO_VARIABLES,
    ) -> None:
        """``words`` is the restarting command; it is followed by the trainer's arguments."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        self.record = AttemptRecord(root / "record")
        self._process = subprocess.Popen(
            [*words, method, str(root / "record"), *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        # torchrun and a shell do not end their trainer. A pid of 0 would mean this process group.
        if pid := self.record.read().pid:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def is_ready(self) -> bool:
        """Return whether the state has been saved, so that a kill can be measured."""
        return self.record.read().step >= 2

    def kill(self) -> float:
        """Kill the trainer; return the seconds to the end of the next trainer's first step."""
        wait_for(self.is_ready)
        time.sleep(READY_SECONDS)
        return self._kill()[1]

    def _kill(self) -> tuple[int, float]:
        """Kill the trainer; return the repeated steps, and the seconds to the end of the first."""
        last = self.record.read()
        killed = time.monotonic_ns()
        os.kill(last.pid, signal.SIGKILL)
        wait_for(lambda: self.record.read().pid != last.pid)
        attempt = self.record.read()
        return last.step + 1 - attempt.first_step, (attempt.first_ns - killed) / 1e9

    def work(self, seconds: float, kills: int = 0) -> Work:
        """Let the job train for ``seconds``, with a SIGKILL every KILL_EVERY_SECONDS."""
        began, first = time.monotonic(), self.record.read().step
        repeated_steps, downtime_seconds = 0, 0.0
        for number in range(kills):
            time.sleep(max(0.0, began + number * KILL_EVERY_SECONDS - time.monotonic()))
            steps, downtime = self._kill()
            repeated_steps, downtime_seconds = repeated_steps + steps, downtime_seconds + downtime
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        steps_per_second = (self.record.read().step - first) / seconds
        return Work(steps_per_second, repeated_steps, downtime_seconds)


class OrchestratorJob(Job):
    """A job under `orchestrator run`."""

    def __init__(
        self, root: Path, size: int, option: str, variables: Mapping[str, str] = NO_VARIABLES
    ) -> None:
        self._run = RunDir(root / "run")
        self._wants_spare = option == "--spare"
        words = [sys.executable, "-m", "orchestrator", "run", "--run-dir", str(self._run.root)]
        # More than there are kills.
        words += [option, "--max-restarts", "1000", "--", sys.executable, "-m", TRAINER]
        super().__init__(root, words, "session", size, variables=variables)

    def is_ready(self) -> bool:
        """Return whether there is a snapshot in memory and, if it is used, a spare."""
        status = self._status()
        spare = (status.get("spare") or {}).get("state")
        has_state = status.get("newest_snapshot") is not None and super().is_ready()
        return has_state and (spare == "ready" or not self._wants_spare)

    def _status(self) -> dict[str, Any]:
        socket = (lock_owner(self._run) or {}).get("socket")
        if socket is None:
            return {}
        connection = Connection(socket, DEADLINE_SECONDS)
        connection.send({"type": "status"})
        status = connection.receive()
        connection.close()
        return status or {}


def torchrun(
    root: Path,
    size: int,
    every_seconds: float = RARE_SAVE_SECONDS,
    variables: Mapping[str, str] = NO_VARIABLES,
) -> Job:
    words = [*TORCHRUN, "--max-restarts", "1000", "-m", TRAINER]
    return Job(root, words, "classic", size, every_seconds, variables=variables)


def bash_loop(root: Path, size: int) -> Job:
    loop = 'until "$@"; do :; done'
    words = ["bash", "-c", loop, "bash", sys.executable, "-m", TRAINER]
    return Job(root, words, "classic", size, RARE_SAVE_SECONDS)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the trainer did not continue within {DEADLINE_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


def restarts(root: Path) -> list[Figure]:
    """Measure the time from a SIGKILL to the end of the next step, with and without a spare."""
    return [figure for name, size in SIZES.items() for figure in _restarts(name, size, root)]


def _restarts(name: str, size: int, root: Path) -> list[Figure]:
    def seconds(job: Job, kills: int) -> list[float]:
        with job:
            return [job.kill() for _ in range(kills)]

    def script_alone() -> float:
        words = [sys.executable, "-m", TRAINER, "alone", str(root / "record"), str(size)]
        done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
        return float(done.stdout)

    is_large = size > LARGE_BYTES
    label = f"{name}: SIGKILL to the next step"
    with_spare = seconds(OrchestratorJob(root, size, "--spare"), KILLS)
    cold = seconds(OrchestratorJob(root, size, "--no-spare"), KILLS)
    by_torchrun = seconds(torchrun(root, size), KILLS)
    by_bash = seconds(bash_loop(root, size), KILLS)
    against_cold = paired(label, with_spare, cold, "cold start, no spare")
    against_cold.relative = False
    copies = 2 * Bytes(Workload(size).tensors()).copy() if is_large else 0.0
    against_cold.target = 0.5 + copies
    alone = [script_alone() for _ in range(SCRIPT_RUNS)]
    return [
        paired(label, with_spare, alone, "the script's own part of that"),
        against_cold,
        paired(label, with_spare, by_torchrun, "torchrun", None if is_large else 0.1),
        paired(label, with_spare, by_bash, "bash loop"),
    ]


def goodput(root: Path) -> list[Figure]:
    """Measure the share of an undisturbed run's steps that is lost with a SIGKILL every 20 s."""
    return [figure for name, size in SIZES.items() for figure in _goodput(name, size, root)]


def _goodput(name: str, size: int, root: Path) -> list[Figure]:
    workload = Workload(size)
    workload.step()
    root.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    save(workload, 1, root / "saved.pt")
    # Young's interval (1974) loses the least for a given mean time between failures.
    best_interval = math.sqrt(2 * (time.perf_counter() - began) * KILL_EVERY_SECONDS)
    del workload
    seconds = KILLS_PER_ROUND * KILL_EVERY_SECONDS
    # Shares of orchestrator, each with that of torchrun.
    lost: list[tuple[float, float]] = []
    downtime: list[tuple[float, float]] = []
    repeated: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        with OrchestratorJob(root / "job", size, "--spare", STEADY_MEMORY) as job:
            wait_for(job.is_ready)
            before = job.work(BASE_SECONDS).steps_per_second
            orchestrator = job.work(seconds, KILLS_PER_ROUND)
            after = job.work(BASE_SECONDS).steps_per_second
        with torchrun(root / "job", size, best_interval, STEADY_MEMORY) as job:
            wait_for(job.is_ready)
            other = job.work(seconds, KILLS_PER_ROUND)
        undisturbed = (before + after) / 2
        print(f"{name}: undisturbed {before:.1f} and {after:.1f} steps/s", file=sys.stderr)
        lost.append(
            (
                1 - orchestrator.steps_per_second / undisturbed,
                1 - other.steps_per_second / undisturbed,
            )
        )
        downtime.append((orchestrator.downtime_seconds / seconds, other.downtime_seconds / seconds))
        steps = undisturbed * seconds
        repeated.append((orchestrator.repeated_steps / steps, other.repeated_steps / steps))

    def figure(label: str, shares: list[tuple[float, float]], floor_name: str) -> Figure:
        return paired(
            f"{name}: {label}", *zip(*shares, strict=True), floor_name=floor_name, unit="of all"
        )

    whole = figure(
        "steps lost under a SIGKILL every 20 s",
        lost,
        f"torchrun, torch.save every {best_interval:.2g} s",
    )
    whole.target, whole.relative = 0.05, False
    return [
        whole,
        figure("of that from a kill to the next step", downtime, "torchrun"),
        figure("of that done twice", repeated, "torchrun"),
    ]
