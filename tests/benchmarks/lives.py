"""A trainer that is killed again and again, and notes how far it came.

python -m tests.benchmarks.lives ours|classic|alone NOTES BYTES [SECONDS]
``classic`` does what everybody's script does: torch.save every so many seconds, load at the start;
``alone`` prints how long the script itself takes, with torch imported, to the end of a first step.
"""

import contextlib
import mmap
import os
import struct
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from tests.benchmarks.workload import Workload

RECORD = struct.Struct("4q")
TOTAL = 10**9


class Life(NamedTuple):
    """A process, the step it completed last, and the first, with its end (monotonic)."""

    pid: int
    step: int
    first_step: int
    first_ns: int


class Notes:
    """Shared memory of trainer and benchmark: a process, how far it came, and where it began."""

    def __init__(self, file: Path) -> None:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(descriptor, RECORD.size)
        self._map = mmap.mmap(descriptor, RECORD.size)
        self._first: tuple[int, int] | None = None
        os.close(descriptor)

    def step(self, step: int) -> None:
        """Note that this process has completed a step."""
        self._first = self._first or (step, time.monotonic_ns())
        RECORD.pack_into(self._map, 0, os.getpid(), step, *self._first)

    def read(self) -> Life:
        """What the process that wrote last has noted; process 0 before the first."""
        return Life(*RECORD.unpack_from(self._map))


def ours(workload: Workload, notes: Notes) -> None:
    from orchestrator.training import Session

    with Session(model=workload.model, optimizer=workload.optimizer) as session:
        for _ in session.steps(TOTAL):
            workload.step()
            session.step()
            notes.step(session.global_step)


def classic(workload: Workload, notes: Notes, file: Path, seconds: float) -> None:
    step = 0
    if file.exists():
        checkpoint = torch.load(file, weights_only=True)
        workload.model.load_state_dict(checkpoint["model_state_dict"])
        workload.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
        step = checkpoint["step"]
    due = 0.0 if step == 0 else time.monotonic() + seconds
    while step < TOTAL:
        workload.step()
        step += 1
        notes.step(step)
        if time.monotonic() >= due:
            save(workload, step, file)
            due = time.monotonic() + seconds


def save(workload: Workload, step: int, file: Path) -> None:
    temporary = file.with_suffix(".writing")
    with open(temporary, "wb") as opened:
        state = {
            "step": step,
            "model_state_dict": workload.model.state_dict(),
            "optimizer_state_dict": workload.optimizer.state_dict(),
        }
        torch.save(state, opened)
        opened.flush()
        os.fsync(opened.fileno())
    temporary.rename(file)


def main() -> None:
    way, file, state_bytes, *seconds = sys.argv[1:]
    if way == "alone":
        import torch._dynamo  # noqa: F401 - the first optimizer step would, and a spare has it
    began = time.perf_counter()
    workload, notes = Workload(int(state_bytes)), Notes(Path(file))
    if way == "alone":
        workload.step()
        print(time.perf_counter() - began)
        return
    with contextlib.suppress(KeyboardInterrupt):
        if way == "ours":
            ours(workload, notes)
        else:
            classic(workload, notes, Path(file).with_name("checkpoint.pt"), float(seconds[0]))


if __name__ == "__main__":
    main()
