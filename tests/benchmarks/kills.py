"""What a SIGKILL of the trainer costs: the way back to the next step, and work over minutes."""

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
from tests.benchmarks.lives import Notes, save
from tests.benchmarks.workload import Bytes, Workload

ROOT = Path(__file__).parents[2]
SIZES = {"10 MB": 10_000_000, "600 MB": 600_000_000}
LARGE_BYTES = 100_000_000
KILLS = 20
ALONE = 5
DEADLINE_SECONDS = 120.0
SETTLE_SECONDS = 1.0
POLL_SECONDS = 0.002

# Three minutes of kills, in rounds: over minutes the pace of a machine changes too.
ROUNDS = 3
KILLS_IN_ROUND = 3
KILL_EVERY_SECONDS = 20.0
BASE_SECONDS = 15.0
# By default glibc hands large temporaries back to the kernel or does not, by what it has learned
# in the life of a process, and steps take up to half as long again for the page faults.
STEADY_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}

LIVES = "tests.benchmarks.lives"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
# Often enough to be never in the way, where only the restart is measured.
SELDOM_SECONDS = 3600.0
NO_VARIABLES: Mapping[str, str] = {}


@dataclass(frozen=True)
class Work:
    """Steps that were kept, per second; steps done again; seconds from kills to the next step."""

    pace: float
    again: int
    still_seconds: float


class Job:
    """A training job that somebody else restarts; the context ends it."""

    def __init__(
        self,
        root: Path,
        words: list[str],
        way: str,
        *arguments: object,
        variables: Mapping[str, str] = NO_VARIABLES,
    ) -> None:
        """``words`` are the command that restarts what follows them."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        self.notes = Notes(root / "notes")
        self._process = subprocess.Popen(
            [*words, way, str(root / "notes"), *map(str, arguments)],
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
        # torchrun and a shell do not end their trainer; 0 would be everybody in our group.
        if pid := self.notes.read().pid:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def is_ready(self) -> bool:
        """Whether a kill now would find everything prepared: the state was saved."""
        return self.notes.read().step >= 2

    def kill(self) -> float:
        """Seconds from a SIGKILL of the trainer to the end of the next one's first step."""
        wait_for(self.is_ready)
        time.sleep(SETTLE_SECONDS)
        return self._kill()[1]

    def _kill(self) -> tuple[int, float]:
        """Steps that a SIGKILL has done again, and seconds until the first of them is done."""
        last = self.notes.read()
        killed = time.monotonic_ns()
        os.kill(last.pid, signal.SIGKILL)
        wait_for(lambda: self.notes.read().pid != last.pid)
        life = self.notes.read()
        return last.step + 1 - life.first_step, (life.first_ns - killed) / 1e9

    def work(self, seconds: float, kills: int = 0) -> Work:
        """Have it work, under a SIGKILL now and then."""
        began, first = time.monotonic(), self.notes.read().step
        again, still_seconds = 0, 0.0
        for number in range(kills):
            time.sleep(max(0.0, began + number * KILL_EVERY_SECONDS - time.monotonic()))
            steps, still = self._kill()
            again, still_seconds = again + steps, still_seconds + still
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        return Work((self.notes.read().step - first) / seconds, again, still_seconds)


class OurJob(Job):
    """Under `orchestrator run`."""

    def __init__(
        self, root: Path, size: int, option: str, variables: Mapping[str, str] = NO_VARIABLES
    ) -> None:
        self._run = RunDir(root / "run")
        self._wants_spare = option == "--spare"
        words = [sys.executable, "-m", "orchestrator", "run", "--run-dir", str(self._run.root)]
        # Kills are no failures of the script here.
        words += [option, "--max-restarts", "1000", "--", sys.executable, "-m", LIVES]
        super().__init__(root, words, "ours", size, variables=variables)

    def is_ready(self) -> bool:
        """With a snapshot in memory and, where it is wanted, a spare."""
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
    every_seconds: float = SELDOM_SECONDS,
    variables: Mapping[str, str] = NO_VARIABLES,
) -> Job:
    words = [*TORCHRUN, "--max-restarts", "1000", "-m", LIVES]
    return Job(root, words, "classic", size, every_seconds, variables=variables)


def bash_loop(root: Path, size: int) -> Job:
    loop = 'until "$@"; do :; done'
    words = ["bash", "-c", loop, "bash", sys.executable, "-m", LIVES]
    return Job(root, words, "classic", size, SELDOM_SECONDS)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the trainer does not come back")
        time.sleep(POLL_SECONDS)


def restarts(root: Path) -> list[Figure]:
    """From a SIGKILL to the completion of the next step, ours with and without a spare."""
    return [figure for name, size in SIZES.items() for figure in _restarts(name, size, root)]


def _restarts(name: str, size: int, root: Path) -> list[Figure]:
    def seconds(job: Job, kills: int) -> list[float]:
        with job:
            return [job.kill() for _ in range(kills)]

    def script_alone() -> float:
        words = [sys.executable, "-m", LIVES, "alone", str(root / "notes"), str(size)]
        done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
        return float(done.stdout)

    is_large = size > LARGE_BYTES
    label = f"{name}: SIGKILL to the next step"
    ours = seconds(OurJob(root, size, "--spare"), KILLS)
    cold = seconds(OurJob(root, size, "--no-spare"), KILLS)
    by_torchrun = seconds(torchrun(root, size), KILLS)
    by_bash = seconds(bash_loop(root, size), KILLS)
    against_cold = paired(label, ours, cold, "our cold start")
    against_cold.relative = False
    copies = 2 * Bytes(Workload(size).tensors()).copy() if is_large else 0.0
    against_cold.target = 0.5 + copies
    alone = [script_alone() for _ in range(ALONE)]
    return [
        paired(label, ours, alone, "the script's own part of that"),
        against_cold,
        paired(label, ours, by_torchrun, "torchrun", None if is_large else 0.1),
        paired(label, ours, by_bash, "bash loop"),
    ]


def goodput(root: Path) -> list[Figure]:
    """Steps lost under a SIGKILL every 20 s, of those of a run that nobody disturbs."""
    return [figure for name, size in SIZES.items() for figure in _goodput(name, size, root)]


def _goodput(name: str, size: int, root: Path) -> list[Figure]:
    workload = Workload(size)
    workload.step()
    root.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    save(workload, 1, root / "saved.pt")
    # Young's interval (1974) is the best there is for a given mean time between failures.
    best = math.sqrt(2 * (time.perf_counter() - began) * KILL_EVERY_SECONDS)
    del workload
    seconds = KILLS_IN_ROUND * KILL_EVERY_SECONDS
    lost: list[tuple[float, float]] = []
    still: list[tuple[float, float]] = []
    again: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        with OurJob(root / "job", size, "--spare", STEADY_MEMORY) as job:
            wait_for(job.is_ready)
            before = job.work(BASE_SECONDS).pace
            ours = job.work(seconds, KILLS_IN_ROUND)
            after = job.work(BASE_SECONDS).pace
        with torchrun(root / "job", size, best, STEADY_MEMORY) as job:
            wait_for(job.is_ready)
            theirs = job.work(seconds, KILLS_IN_ROUND)
        pace = (before + after) / 2
        print(f"{name}: undisturbed {before:.1f} and {after:.1f} steps/s", file=sys.stderr)
        lost.append((1 - ours.pace / pace, 1 - theirs.pace / pace))
        still.append((ours.still_seconds / seconds, theirs.still_seconds / seconds))
        again.append((ours.again / pace / seconds, theirs.again / pace / seconds))

    def figure(label: str, shares: list[tuple[float, float]], floor_name: str) -> Figure:
        return paired(
            f"{name}: {label}", *zip(*shares, strict=True), floor_name=floor_name, unit="of all"
        )

    whole = figure(
        "steps lost under a SIGKILL every 20 s", lost, f"torchrun, torch.save every {best:.2g} s"
    )
    whole.target, whole.relative = 0.05, False
    return [
        whole,
        figure("of that from a kill to the next step", still, "torchrun"),
        figure("of that done twice", again, "torchrun"),
    ]
