"""What a SIGKILL of the trainer costs: the way back to the next step, and work over minutes."""

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.rundir import RunDir
from orchestrator.runlock import lock_owner
from orchestrator.wire import Connection
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

GOODPUT_SECONDS = 180.0
KILL_EVERY_SECONDS = 20.0
BASE_SECONDS = 45.0

LIVES = "tests.benchmarks.lives"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
# Often enough to be never in the way, where only the restart is measured.
SELDOM_SECONDS = 3600.0


class Job:
    """A training job that somebody else restarts; the context ends it."""

    def __init__(self, root: Path, words: list[str], way: str, *arguments: object) -> None:
        """``words`` are the command that restarts what follows them."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        self.notes = Notes(root / "notes")
        self._process = subprocess.Popen(
            [*words, way, str(root / "notes"), *map(str, arguments)],
            cwd=ROOT,
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
        # torchrun and a shell do not end their trainer.
        with contextlib.suppress(OSError):
            os.kill(self.notes.read()[0], signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def is_ready(self) -> bool:
        """Whether a kill now would find everything prepared: the state was saved."""
        return self.notes.read()[1] >= 2

    def kill(self) -> float:
        """Seconds from a SIGKILL of the trainer to the end of the next one's first step."""
        wait_for(self.is_ready)
        time.sleep(SETTLE_SECONDS)
        pid, _, _ = self.notes.read()
        killed = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: self.notes.read()[0] != pid)
        return (self.notes.read()[2] - killed) / 1e9

    def kept_per_second(self) -> float:
        """Steps that it keeps under a SIGKILL now and then."""
        wait_for(self.is_ready)
        began, (_, first, _) = time.monotonic(), self.notes.read()
        for number in range(1, round(GOODPUT_SECONDS / KILL_EVERY_SECONDS)):
            time.sleep(max(0.0, began + number * KILL_EVERY_SECONDS - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.notes.read()[0], signal.SIGKILL)
        time.sleep(max(0.0, began + GOODPUT_SECONDS - time.monotonic()))
        return (self.notes.read()[1] - first) / GOODPUT_SECONDS

    def steps_per_second(self) -> float:
        """The pace of a run that nobody disturbs."""
        wait_for(self.is_ready)
        time.sleep(SETTLE_SECONDS)
        _, before, _ = self.notes.read()
        time.sleep(BASE_SECONDS)
        return (self.notes.read()[1] - before) / BASE_SECONDS


class OurJob(Job):
    """Under `orchestrator run`."""

    def __init__(self, root: Path, size: int, option: str) -> None:
        self._run = RunDir(root / "run")
        self._wants_spare = option == "--spare"
        words = [sys.executable, "-m", "orchestrator", "run", "--run-dir", str(self._run.root)]
        # Kills are no failures of the script here.
        words += [option, "--max-restarts", "1000", "--", sys.executable, "-m", LIVES]
        super().__init__(root, words, "ours", size)

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


def torchrun(root: Path, size: int, every_seconds: float = SELDOM_SECONDS) -> Job:
    words = [*TORCHRUN, "--max-restarts", "1000", "-m", LIVES]
    return Job(root, words, "classic", size, every_seconds)


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
    """Steps kept under a SIGKILL every 20 s, over those of a run that nobody disturbs."""
    return [_goodput(name, size, root) for name, size in SIZES.items()]


def _goodput(name: str, size: int, root: Path) -> Figure:
    def undisturbed() -> float:
        with OurJob(root, size, "--spare") as job:
            return job.steps_per_second()

    # Before and after: over minutes the pace of a machine changes too.
    paces = [undisturbed()]
    with OurJob(root, size, "--spare") as job:
        ours = job.kept_per_second()
    paces.append(undisturbed())
    pace = sum(paces) / len(paces)
    workload = Workload(size)
    workload.step()
    began = time.perf_counter()
    save(workload, 1, root / "saved.pt")
    save_seconds = time.perf_counter() - began
    # Young's interval (1974) is the best there is for a given mean time between failures.
    best = math.sqrt(2 * save_seconds * KILL_EVERY_SECONDS)
    with torchrun(root, size, best) as job:
        others = job.kept_per_second()
    words = f"torchrun, torch.save every {best:.2g} s"
    label = f"{name}: steps lost under a SIGKILL every 20 s"
    print(f"{name}: undisturbed {paces[0]:.1f} and {paces[1]:.1f} steps/s", file=sys.stderr)
    return Figure(label, "of all", 1 - ours / pace, 1 - others / pace, words, 0.05)
