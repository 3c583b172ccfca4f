"""A trainer that the benchmark kills repeatedly, and that records how far it came.

python -m tests.benchmarks.killed_trainer session|classic|alone RECORD BYTES [SECONDS]
``classic`` does what scripts commonly do: torch.save every SECONDS, torch.load at the start.
``alone`` prints the seconds that the script itself takes, with torch imported, to the end of its
first step.
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

LAYOUT = struct.Struct("4q")
TOTAL_STEPS = 10**9


class Attempt(NamedTuple):
    """A trainer process: its newest completed step, its first one, and when that one ended."""

    pid: int
    step: int
    first_step: int
    first_ns: int
    """Monotonic nanoseconds."""


class AttemptRecord:
    """Memory shared by the trainer and the benchmark that holds the newest Attempt."""

    def __init__(self, file: Path) -> None:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(descriptor, LAYOUT.size)
        self._map = mmap.mmap(descriptor, LAYOUT.size)
        self._first: tuple[int, int] | None = None
        os.close(descriptor)

    def record_step(self, step: int) -> None:
        """Record that this process has completed a step."""
        self._first = self._first or (step, time.monotonic_ns())
        LAYOUT.pack_into(self._map, 0, os.getpid(), step, *self._first)

    def read(self) -> Attempt:
        """Return what the newest process has recorded; its pid is 0 before the first step."""
        return Attempt(*LAYOUT.unpack_from(self._map))


def train_with_session(workload: Workload, record: AttemptRecord) -> None:
    from orchestrator.training import Session

    with Session(model=workload.model, optimizer=workload.optimizer) as session:
        for _ in session.steps(TOTAL_STEPS):
            workload.step()
            session.step()
            record.record_step(session.global_step)


def train_with_torch_save(
    workload: Workload, record: AttemptRecord, file: Path, seconds: float
) -> None:
    step = 0
    if file.exists():
        checkpoint = torch.load(file, weights_only=True)
        workload.model.load_state_dict(checkpoint["model_state_dict"])
        workload.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
        step = checkpoint["step"]
    due = 0.0 if step == 0 else time.monotonic() + seconds
    while step < TOTAL_STEPS:
        workload.step()
        step += 1
        record.record_step(step)
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
    method, file, state_bytes, *seconds = sys.argv[1:]
    if method == "alone":
        import torch._dynamo  # noqa: F401 - the first optimizer step would; a spare has done so
    began = time.perf_counter()
    workload, record = Workload(int(state_bytes)), AttemptRecord(Path(file))
    if method == "alone":
        workload.step()
        print(time.perf_counter() - began)
        return
    with contextlib.suppress(KeyboardInterrupt):
        if method == "session":
            train_with_session(workload, record)
        else:
            checkpoint = Path(file).with_name("checkpoint.pt")
            train_with_torch_save(workload, record, checkpoint, float(seconds[0]))


if __name__ == "__main__":
    main()
