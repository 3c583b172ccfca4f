"""The trainer of the benchmarks: runs under a supervisor and measures itself.

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
from orchestrator.training import Session
from orchestrator.training.loop.schedule import NEVER
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

QUIET_SHARE = 0.05
QUIET_SECONDS = 0.1
QUIET_WAIT_SECONDS = 60.0
STEPS_BETWEEN = 2
# So many snapshots teach the pace its interval.
PACED = 6


class Trainer:
    """A session with a workload, and the means to have it save at a given step.

    The only place that looks into a session: what it does by the clock is done on demand here.
    """

    def __init__(self, session: Session, workload: Workload) -> None:
        self.session = session
        self.workload = workload
        self.supervisor = psutil.Process(os.getppid())
        self._taking: PendingSnapshot | None = None
        self._snapshotter = session._open_run.saves.saver._snapshotter
        self._take = self._snapshotter.take
        self._snapshotter.take = self._record  # type: ignore[method-assign]

    def _record(
        self, content: SnapshotContent, deadline: float | None = None
    ) -> PendingSnapshot | None:
        self._taking = self._take(content, deadline)
        return self._taking

    def steps(self, count: int) -> float:
        """Seconds that so many steps take."""
        began = time.perf_counter()
        for _ in range(count):
            self.workload.step()
            self.session.step()
        return time.perf_counter() - began

    def snapshot(self) -> tuple[float, PendingSnapshot]:
        """Take a snapshot at a safe point: seconds that it took, and what came of it."""
        pace = self.session._open_run.saves.saver.pace
        self.workload.step()
        self._taking = None
        pace.next_ns = 0
        began = time.perf_counter()
        self.session.step()
        seconds = time.perf_counter() - began
        pace.next_ns = NEVER
        taking, thread = self._taking, self._snapshotter._thread
        assert taking is not None, "no snapshot was taken"
        assert thread is not None
        taking.done.result()
        thread.join()
        return seconds, taking

    def request_checkpoint(self) -> Future[Any]:
        """One step at whose end a checkpoint begins, as `orchestrator checkpoint` asks for."""
        self.session._open_run.membership.page[Field.CHECKPOINT_REQUESTS] += 1
        self.workload.step()
        self.session.step()
        written: Future[Any] = self.session._open_run.saves.saver._writes[-1]
        return written

    def settle(self) -> float:
        """Wait until the supervisor has nothing to do; its processor seconds since its start."""
        deadline = time.monotonic() + QUIET_WAIT_SECONDS
        used = sum(self.supervisor.cpu_times()[:2])
        while time.monotonic() < deadline:
            time.sleep(QUIET_SECONDS)
            before, used = used, sum(self.supervisor.cpu_times()[:2])
            if used - before <= QUIET_SHARE * QUIET_SECONDS:
                break
        return used

    def cpu_seconds(self) -> float:
        """The supervisor's processor seconds since its start."""
        return sum(self.supervisor.cpu_times()[:2])


def note(times: Times, **seconds: float) -> None:
    for name, value in seconds.items():
        times.setdefault(name, []).append(value)


def saving(trainer: Trainer, arguments: argparse.Namespace) -> Times:
    """How long the loop stands still for a snapshot, and how long a checkpoint takes."""
    times: Times = {}
    trainer.steps(1)
    trainer.session.checkpoint()  # the first one lays out, populates and reserves
    floor = Bytes(trainer.workload.tensors())
    raw_file = trainer.session._open_run.membership.backend.facts.run_dir.root / "raw"
    trainer.snapshot()
    for _ in range(arguments.rounds):
        trainer.steps(STEPS_BETWEEN)
        stall, taking = trainer.snapshot()
        trainer.steps(STEPS_BETWEEN)
        note(
            times,
            stall=stall,
            inner_stall=taking.stall_seconds,
            thread=taking.thread_seconds,
            copy=floor.copy(),
        )
    for _ in range(arguments.rounds):
        trainer.settle()
        note(times, raw_write=floor.write(raw_file))
        before = trainer.cpu_seconds()
        began = time.perf_counter()
        trainer.session.checkpoint()
        note(times, durable=time.perf_counter() - began)
        note(times, supervisor_cpu=trainer.settle() - before)
    return times


def losing(trainer: Trainer, arguments: argparse.Namespace) -> Times:
    """Training time that a durable checkpoint costs, by our way and by those of others."""
    times: Times = {}
    trainer.steps(2)
    trainer.session.checkpoint()
    floor = Bytes(trainer.workload.tensors())
    root = trainer.session._open_run.membership.backend.facts.run_dir.root
    methods: dict[str, Callable[[], Any]] = {
        "ours": trainer.request_checkpoint,
        "dcp": lambda: _dcp(trainer, root / "dcp"),
        "save": lambda: _save(trainer, root / "plain.pt"),
    }
    lengths = {}
    trainer.settle()
    step_seconds = trainer.steps(3) / 3
    for name, begin in methods.items():  # a first time, for how long they take and to warm up
        began = time.perf_counter()
        _finish(begin(), root)
        trainer.settle()
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
            cpu_later = trainer.settle() - cpu - cpu_meanwhile
            base_before, base = base, trainer.steps(base_steps) / base_steps
            step = (base_before + base) / 2
            times.setdefault(f"{name}_lost", []).append(took - steps * step)
            times.setdefault(f"{name}_stall", []).append(returned - began - step)
            times.setdefault(f"{name}_durable", []).append((ended or [returned])[0] - began)
            note(times, step=step)
            if name == "ours":
                note(times, supervisor_cpu=cpu_meanwhile, supervisor_cpu_later=cpu_later)
        note(times, copy=floor.copy())
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
    """Windows of steps with one snapshot, in turn with none, and the interval that is paced."""
    times: Times = {}
    pace = trainer.session._open_run.saves.saver.pace
    trainer.steps(1)
    trainer.session.checkpoint()
    for _ in range(PACED):
        trainer.snapshot()
    steps = max(4, round(arguments.base_seconds / (trainer.steps(8) / 8)))
    for turn in range(arguments.rounds):
        for with_snapshot in (turn % 2 == 0, turn % 2 == 1):
            pace.next_ns = 0 if with_snapshot else NEVER
            begun = _generation(trainer)
            # What the step that takes it costs, and those that run beside its thread.
            seconds = trainer.steps(1)
            pace.next_ns = NEVER
            seconds += trainer.steps(steps)
            assert _generation(trainer) - begun == with_snapshot
            note(times, **{"with_one" if with_snapshot else "without": seconds})
        note(times, interval=pace.interval_seconds)
    return times


def _generation(trainer: Trainer) -> int:
    slots = trainer.session._open_run.membership.backend.facts.memory.slots
    return max((s.generation for s in slots.snapshots()), default=0)


def tiny(trainer: Trainer, arguments: argparse.Namespace) -> Times:
    """What many small tensors cost: to lay out, to copy, to finish in the thread."""
    times: Times = {}
    trainer.steps(1)
    trainer.session.checkpoint()
    trainer.snapshot()
    for _ in range(arguments.rounds):
        stall, taking = trainer.snapshot()
        state = trainer.session._loop_state.state_to_save(Reason.PERIODIC).state
        frozen = freeze(state)
        began = time.perf_counter()
        lay_out(frozen)
        note(times, layout=time.perf_counter() - began)
        began = time.perf_counter()
        torch.save(frozen.tree, io.BytesIO())
        note(times, save=time.perf_counter() - began)
        note(times, stall=stall, thread=taking.thread_seconds)
        del state, frozen  # in the next round that would be counted as stall
    return times


def restoring(arguments: argparse.Namespace, workload: Workload) -> Times:
    """Resume, from memory in a restart and from disk in a process alone; then be killed."""
    times: Times = {}
    session = Session(model=workload.model, optimizer=workload.optimizer, run_dir=arguments.run_dir)
    states = sorted(arguments.run_dir.glob("checkpoints/step-*/state.pt")) if alone() else []
    raw_read = 0.0
    if states:
        raw_read = read_directly(states[-1])
        drop_from_cache(states[-1])
    began = time.perf_counter()
    session.__enter__()
    seconds = time.perf_counter() - began
    if session.resumed_from is not None:
        floor = Bytes(workload.tensors())
        note(times, clone=floor.clone(), copy=floor.copy(), load=restore_by_torch(states))
        if states:
            note(times, disk=seconds, raw_read=raw_read)
        else:
            note(times, memory=seconds)
        del floor
    if not alone():
        workload.step()
        session.step()
        session.checkpoint()
    return times


def restore_by_torch(states: list[Path]) -> float:
    """Seconds of torch.load alone, from the page cache; 0 where there is no file."""
    began = time.perf_counter()
    for path in states[-1:]:
        torch.load(path, weights_only=True)
    return time.perf_counter() - began if states else 0.0


def alone() -> bool:
    """Whether no supervisor is there."""
    return "ORCHESTRATOR_SOCKET" not in os.environ


def leave() -> NoReturn:
    """End without a last checkpoint, and with the status after which nobody restarts us."""
    os._exit(ExitStatus.CONFIGURATION)


def write(path: Path, times: Times) -> None:
    if times:
        with open(path, "a") as file:
            file.write(json.dumps(times) + "\n")


CASES = {"saving": saving, "losing": losing, "overhead": overhead, "tiny": tiny}


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
        lives = len(arguments.result.read_text().splitlines()) if arguments.result.exists() else 0
        if alone() or lives >= arguments.rounds:
            leave()
        os.kill(os.getpid(), signal.SIGKILL)
    with Session(model=workload.model, optimizer=workload.optimizer) as session:
        write(arguments.result, CASES[arguments.case](Trainer(session, workload), arguments))
        leave()


if __name__ == "__main__":
    main()
