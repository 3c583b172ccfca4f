"""The trainer of the benchmarks, which measures itself under a supervisor.

python -m tests.benchmarks.trainer CASE --result FILE [--bytes N] [--threads N] ...
Appends lines of JSON to FILE, each a mapping of names to lists of seconds.
"""

import argparse
import io
import json
import logging
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch

from orchestrator.checkpoint.manifest import Reason
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import Field
from orchestrator.pace.save_schedule import NEVER
from orchestrator.training import Session
from orchestrator.training.saving.image import freeze, lay_out
from orchestrator.training.saving.snapshotter import PendingSnapshot, SnapshotContent
from tests.benchmarks.workload import (
    Bytes,
    TinyWorkload,
    Workload,
    drop_from_cache,
    read_directly,
)

Times = dict[str, list[float]]

IDLE_SHARE = 0.05
IDLE_SECONDS = 0.1
IDLE_WAIT_SECONDS = 60.0
STEPS_BETWEEN = 2
# The pace knows its interval after this many snapshots.
PACE_SNAPSHOTS = 6


class Trainer:
    """A session with a workload that saves at a given step.

    A session saves by the clock. To make it save on demand, this class reaches into its parts.
    """

    def __init__(self, session: Session, workload: Workload) -> None:
        self.session = session
        self.workload = workload
        self.supervisor = psutil.Process(os.getppid())
        self._pending: PendingSnapshot | None = None
        self._snapshotter = session._open_run.saves.saver._snapshotter
        self._take = self._snapshotter.take
        self._snapshotter.take = self._record  # type: ignore[method-assign]

    def _record(
        self, content: SnapshotContent, deadline: float | None = None
    ) -> PendingSnapshot | None:
        self._pending = self._take(content, deadline)
        return self._pending

    def steps(self, count: int) -> float:
        """Train ``count`` steps, and return the seconds."""
        began = time.perf_counter()
        for _ in range(count):
            self.workload.step()
            self.session.step()
        return time.perf_counter() - began

    def snapshot(self) -> tuple[float, PendingSnapshot]:
        """Take a snapshot at a safe point; return the seconds of that step, and the snapshot."""
        pace = self.session._open_run.saves.saver.pace
        self.workload.step()
        self._pending = None
        pace.next_ns = 0
        began = time.perf_counter()
        self.session.step()
        seconds = time.perf_counter() - began
        pace.next_ns = NEVER
        pending, thread = self._pending, self._snapshotter._thread
        assert pending is not None, "no snapshot was taken"
        assert thread is not None
        pending.done.result()
        thread.join()
        return seconds, pending

    def request_checkpoint(self) -> Future[Any]:
        """Train a step that ends with a checkpoint, as `orchestrator checkpoint` requests it."""
        self.session._open_run.membership.page[Field.CHECKPOINT_REQUESTS] += 1
        self.workload.step()
        self.session.step()
        written: Future[Any] = self.session._open_run.saves.saver._writes[-1]
        return written

    def wait_until_idle(self) -> float:
        """Wait until the supervisor is idle; return its processor seconds since its start."""
        deadline = time.monotonic() + IDLE_WAIT_SECONDS
        used = sum(self.supervisor.cpu_times()[:2])
        while time.monotonic() < deadline:
            time.sleep(IDLE_SECONDS)
            before, used = used, sum(self.supervisor.cpu_times()[:2])
            if used - before <= IDLE_SHARE * IDLE_SECONDS:
                break
        return used

    def cpu_seconds(self) -> float:
        """Return the supervisor's processor seconds since its start."""
        return sum(self.supervisor.cpu_times()[:2])


def record(times: Times, **seconds: float) -> None:
    for name, value in seconds.items():
        times.setdefault(name, []).append(value)


def saving(trainer: Trainer, arguments: argparse.Namespace) -> Times:
    """Measure how long the loop waits for a snapshot, and how long a checkpoint takes."""
    times: Times = {}
    trainer.steps(1)
    trainer.session.checkpoint()  # the first one also reserves and populates the memory
    floor = Bytes(trainer.workload.tensors())
    raw_file = trainer.session._open_run.membership.backend.facts.run_dir.root / "raw"
    trainer.snapshot()
    for _ in range(arguments.rounds):
        trainer.steps(STEPS_BETWEEN)
        stall, pending = trainer.snapshot()
        trainer.steps(STEPS_BETWEEN)
        record(
            times,
            stall=stall,
            inner_stall=pending.stall_seconds,
            thread=pending.thread_seconds,
            copy=floor.copy(),
        )
    for _ in range(arguments.rounds):
        trainer.wait_until_idle()
        record(times, raw_write=floor.write(raw_file))
        before = trainer.cpu_seconds()
        began = time.perf_counter()
        trainer.session.checkpoint()
        record(times, durable=time.perf_counter() - began)
        record(times, supervisor_cpu=trainer.wait_until_idle() - before)
    return times


def lost_time(trainer: Trainer, arguments: argparse.Namespace) -> Times:
    """Measure the training time that a durable checkpoint costs, by a session and otherwise."""
    times: Times = {}
    trainer.steps(2)
    trainer.session.checkpoint()
    floor = Bytes(trainer.workload.tensors())
    root = trainer.session._open_run.membership.backend.facts.run_dir.root
    methods: dict[str, Callable[[], Any]] = {
        "session": trainer.request_checkpoint,
        "dcp": lambda: _dcp(trainer, root / "dcp"),
        "save": lambda: _save(trainer, root / "plain.pt"),
    }
    lengths = {}
    trainer.wait_until_idle()
    step_seconds = trainer.steps(3) / 3
    for name, begin in methods.items():  # to warm up, and to know how long each takes
        began = time.perf_counter()
        _finish(begin(), root)
        trainer.wait_until_idle()
        seconds = 1.5 * (time.perf_counter() - began) + 0.2
        lengths[name] = max(8, round(seconds / step_seconds))
    base_steps = max(8, round(arguments.base_seconds / step_seconds))
    base = trainer.steps(base_steps) / base_steps
    for _ in range(arguments.rounds):
        for name, begin in methods.items():
            steps = lengths[name]
            cpu = trainer.cpu_seconds()
            took = trainer.steps(2)
            began = time.perf_counter()
            pending = begin()
            returned = time.perf_counter()
            ended: list[float] = []
            if pending is not None:
                pending.add_done_callback(lambda _, ended=ended: ended.append(time.perf_counter()))
            took += returned - began + trainer.steps(steps - 3)
            cpu_meanwhile = trainer.cpu_seconds() - cpu
            _finish(pending, root)
            cpu_later = trainer.wait_until_idle() - cpu - cpu_meanwhile
            base_before, base = base, trainer.steps(base_steps) / base_steps
            step = (base_before + base) / 2
            times.setdefault(f"{name}_lost", []).append(took - steps * step)
            times.setdefault(f"{name}_stall", []).append(returned - began - step)
            times.setdefault(f"{name}_durable", []).append((ended or [returned])[0] - began)
            record(times, step=step)
            if name == "session":
                record(times, supervisor_cpu=cpu_meanwhile, supervisor_cpu_later=cpu_later)
        record(times, copy=floor.copy())
    return times


def _dcp(trainer: Trainer, path: Path) -> Any:
    from torch.distributed.checkpoint import async_save

    trainer.workload.step()
    future = async_save(trainer.workload.state(), checkpoint_id=path)
    trainer.session.step()
    return future


def _save(trainer: Trainer, path: Path) -> None:
    trainer.workload.step()
    temporary = path.with_suffix(".writing")
    with open(temporary, "wb") as file:
        torch.save(trainer.workload.state(), file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    trainer.session.step()


def _finish(pending: Any, root: Path) -> None:
    if pending is not None:
        pending.result()
    shutil.rmtree(root / "dcp", ignore_errors=True)
    (root / "plain.pt").unlink(missing_ok=True)


def overhead(trainer: Trainer, arguments: argparse.Namespace) -> Times:
    """Measure windows of steps with one snapshot, in turn with none, and the interval."""
    times: Times = {}
    pace = trainer.session._open_run.saves.saver.pace
    trainer.steps(1)
    trainer.session.checkpoint()
    for _ in range(PACE_SNAPSHOTS):
        trainer.snapshot()
    steps = max(4, round(arguments.base_seconds / (trainer.steps(8) / 8)))
    for turn in range(arguments.rounds):
        for with_snapshot in (turn % 2 == 0, turn % 2 == 1):
            pace.next_ns = 0 if with_snapshot else NEVER
            begun = _generation(trainer)
            # The step that takes the snapshot, and those that run beside its thread.
            seconds = trainer.steps(1)
            pace.next_ns = NEVER
            seconds += trainer.steps(steps)
            assert _generation(trainer) - begun == with_snapshot
            record(times, **{"with_one" if with_snapshot else "without": seconds})
        record(times, interval=pace.interval_seconds)
    return times


def _generation(trainer: Trainer) -> int:
    slots = trainer.session._open_run.membership.backend.facts.memory.slots
    return max((s.generation for s in slots.snapshots()), default=0)


def tiny(trainer: Trainer, arguments: argparse.Namespace) -> Times:
    """Measure many small tensors: the first save, to lay out, to copy, to finish in the thread."""
    times: Times = {}
    trainer.workload.step()
    began = time.perf_counter()
    trainer.session.step()
    record(times, first_stall=time.perf_counter() - began)
    trainer.session.checkpoint()
    trainer.snapshot()
    for _ in range(arguments.rounds):
        stall, pending = trainer.snapshot()
        state = trainer.session._loop_state.state_to_save(Reason.PERIODIC).state
        frozen = freeze(state)
        began = time.perf_counter()
        lay_out(frozen)
        record(times, layout=time.perf_counter() - began)
        began = time.perf_counter()
        torch.save(frozen.tree, io.BytesIO())
        record(times, save=time.perf_counter() - began)
        record(times, stall=stall, thread=pending.thread_seconds)
        del state, frozen  # later, freeing them would count as stall of the next round
    return times


def restoring(arguments: argparse.Namespace, workload: Workload) -> Times:
    """Measure a resume: from memory after a restart, from disk without a supervisor."""
    times: Times = {}
    session = Session(model=workload.model, optimizer=workload.optimizer, run_dir=arguments.run_dir)
    states = (
        sorted(arguments.run_dir.glob("checkpoints/step-*/state.pt")) if is_unsupervised() else []
    )
    raw_read = 0.0
    if states:
        raw_read = read_directly(states[-1])
        drop_from_cache(states[-1])
    began = time.perf_counter()
    session.__enter__()
    seconds = time.perf_counter() - began
    if session.resumed_from is not None:
        floor = Bytes(workload.tensors())
        record(times, clone=floor.clone(), copy=floor.copy(), load=restore_by_torch(states))
        if states:
            record(times, disk=seconds, raw_read=raw_read)
        else:
            record(times, memory=seconds)
        del floor
    if not is_unsupervised():
        workload.step()
        session.step()
        session.checkpoint()
    return times


def restore_by_torch(states: list[Path]) -> float:
    """Return the seconds of torch.load alone, from the page cache; 0 without a file."""
    began = time.perf_counter()
    for path in states[-1:]:
        torch.load(path, weights_only=True)
    return time.perf_counter() - began if states else 0.0


def is_unsupervised() -> bool:
    """Return whether this process has no supervisor."""
    return "ORCHESTRATOR_SOCKET" not in os.environ


def exit_without_saving() -> NoReturn:
    """Exit without a last checkpoint, with a status after which there is no restart."""
    os._exit(ExitStatus.CONFIGURATION)


def write(path: Path, times: Times) -> None:
    if times:
        with open(path, "a") as file:
            file.write(json.dumps(times) + "\n")


CASES = {"saving": saving, "lost-time": lost_time, "overhead": overhead, "tiny": tiny}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=[*CASES, "restoring"])
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--bytes", type=int, default=0)
    parser.add_argument("--tensors", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base-seconds", type=float, default=1.5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--run-dir", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    workload = (
        TinyWorkload(arguments.tensors)
        if arguments.tensors
        else Workload(arguments.bytes, arguments.device)
    )
    if arguments.case == "restoring":
        write(arguments.result, restoring(arguments, workload))
        attempts = (
            len(arguments.result.read_text().splitlines()) if arguments.result.exists() else 0
        )
        if is_unsupervised() or attempts >= arguments.rounds:
            exit_without_saving()
        os.kill(os.getpid(), signal.SIGKILL)
    with Session(model=workload.model, optimizer=workload.optimizer) as session:
        write(arguments.result, CASES[arguments.case](Trainer(session, workload), arguments))
        exit_without_saving()


if __name__ == "__main__":
    main()
