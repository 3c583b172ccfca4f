"""A trial: one run of the script under faults, from its start until it is complete or lost."""

import errno
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.breakpoints.table import SUPERVISOR, TRAINER
from orchestrator.chaos.breakpoint_server import BreakpointServer, HeldProcess
from orchestrator.chaos.damage import damage
from orchestrator.chaos.display import ProgressDisplay
from orchestrator.chaos.faults import DAMAGES, Action, PlannedFault
from orchestrator.chaos.history import History
from orchestrator.chaos.interrupts import Interrupts
from orchestrator.chaos.result import Injection, TrialResult, check_checkpoints
from orchestrator.chaos.scheduler import RunLostError, Scheduler
from orchestrator.checkpoint.store import Store

# A full disk stays full until one of these is reached: refused operations, or seconds.
FULL_DISK_REFUSALS = 10
FULL_DISK_SECONDS = 8.0
# A damaged checkpoint needs a predecessor.
CHECKPOINTS_FOR_DAMAGE = 2
STEP_BREAKPOINT = f"{TRAINER}:step"
_WRITING = ("create", "write", "sync", "publish")
_DISK_BREAKPOINTS = tuple(f"{role}:{name}" for role in (SUPERVISOR, TRAINER) for name in _WRITING)


@dataclass(frozen=True)
class TrialTiming:
    """The times of a trial, measured in an undisturbed run.

    A fault "at any time" comes within ``delay_seconds`` after a step. A run in which nothing
    happens for ``patience_seconds`` is lost.
    """

    launch_seconds: float
    delay_seconds: float
    patience_seconds: float


@dataclass
class Trial:
    """Runs the command once; ``run_arguments`` are those of `orchestrator run`."""

    run_arguments: list[str]
    directory: Path
    timing: TrialTiming
    interrupts: Interrupts
    rng: random.Random
    display: ProgressDisplay
    injections: list[Injection] = field(default_factory=list, init=False)
    damaged: list[str] = field(default_factory=list, init=False)

    def run(self, plan: Sequence[PlannedFault] = ()) -> TrialResult:
        """Start the run, inject the planned faults, and wait until it is complete or lost.

        Raises InterruptedBySignalError.
        """
        began, problem = time.monotonic(), None
        waiting = list(plan)
        missed: list[PlannedFault] = []
        self._breakpoints = BreakpointServer(self.directory)
        self._scheduler = Scheduler(self.run_arguments, self.directory)
        try:
            while waiting:
                planned = waiting.pop(0)
                if not self._inject(planned):
                    missed.append(planned)
            for _ in self._until_deadline("the run's end"):
                if self._scheduler.is_complete:
                    break
                self._poll(())
        except RunLostError as error:
            problem = str(error)
        finally:
            self._breakpoints.close()
            self._scheduler.end()
        ended = time.monotonic()
        history = History.read(self._breakpoints.history_file)
        content: dict[str, str] = {}
        if problem is None:
            problem, content = check_checkpoints(self._store(), self.damaged)
        first = history.records[0].at if history.records else ended
        return TrialResult(
            directory=self.directory,
            history=history,
            content=content,
            injections=self.injections,
            missed=missed + waiting,
            ended=ended,
            seconds=ended - began,
            launch_seconds=first - began,
            problem=problem,
        )

    # --- waiting -------------------------------------------------------------------------------

    def _until_deadline(self, awaited: str) -> Iterator[None]:
        """Yield until the caller breaks out of the loop. Raises RunLostError at the deadline."""
        deadline = time.monotonic() + self.timing.patience_seconds
        while time.monotonic() < deadline:
            yield
        raise RunLostError(
            f"gave up waiting for {awaited} after {self.timing.patience_seconds:.0f} s"
        )

    def _poll(self, breakpoints: tuple[str, ...]) -> HeldProcess | None:
        self.interrupts.check()
        held = self._breakpoints.poll(*breakpoints)
        if held is not None and held.breakpoint.startswith(TRAINER):
            self._scheduler.trainer_pid = held.facts["pid"]
        elif held is not None and "trainer" in held.facts:
            self._scheduler.trainer_pid = held.facts["trainer"]
        self._scheduler.poll()
        return held

    def _hold(self, *breakpoints: str, from_step: int = 0) -> HeldProcess | None:
        """Hold the next process at one of the breakpoints; return None if the run ends before."""
        self._breakpoints.arm(*breakpoints, from_step=from_step)
        try:
            for _ in self._until_deadline(" or ".join(breakpoints)):
                held = self._poll(breakpoints)
                if held is not None or self._scheduler.is_complete:
                    return held
        finally:
            self._breakpoints.disarm()
        return None

    # --- injecting -----------------------------------------------------------------------------

    def _inject(self, planned: PlannedFault) -> bool:
        """Inject a fault; return whether its moment came before the run's end."""
        fault = planned.fault
        held = self._wait_for_moment(planned)
        if held is None:
            return False
        if fault.action in DAMAGES and len(self._store().all()) < CHECKPOINTS_FOR_DAMAGE:
            held.release()
            return False
        injection = Injection(fault.name, time.monotonic())
        self.injections.append(injection)
        self._act(fault.action, held)
        held.release()
        self.display.fault_injected()
        return True

    def _wait_for_moment(self, planned: PlannedFault) -> HeldProcess | None:
        """Bring the run to the fault's moment; return None if it ends before."""
        moment = planned.fault.moment
        if moment.at_end:
            return self._hold(planned.breakpoint)
        held = self._hold(STEP_BREAKPOINT, from_step=planned.from_step)
        is_at_step = planned.breakpoint == STEP_BREAKPOINT
        if held is None or (moment.provoked_by is None and is_at_step):
            return self._delay(held, planned) if moment.delayed else held
        step = int(held.facts["step"])
        if moment.provoked_by is not None:
            self._act(moment.provoked_by, held)
        held.release()
        # The second fault comes at the step of the first, and not before it.
        held = self._hold(planned.breakpoint, from_step=step if is_at_step else 0)
        return self._delay(held, planned) if moment.delayed else held

    def _delay(self, held: HeldProcess | None, planned: PlannedFault) -> HeldProcess | None:
        """Let the run continue for a random time; return None if it completes in that time."""
        if held is not None:
            held.release()
            provoked = planned.fault.moment.provoked_by is not None
            longest = self.timing.launch_seconds if provoked else self.timing.delay_seconds
            end = time.monotonic() + planned.fraction * longest
            while time.monotonic() < end:
                self._poll(())
        return None if self._scheduler.is_complete else held

    def _act(self, action: Action, held: HeldProcess) -> None:
        scheduler = self._scheduler
        match action:
            case Action.SIGKILL:
                scheduler.kill_trainer()
            case Action.SIGTERM:
                scheduler.stop()
            case Action.SIGTERM_ALL:
                scheduler.terminate_all()
            case Action.KILL_SUPERVISOR:
                scheduler.kill_supervisor()
            case Action.IO_ERROR:
                held.release(errno.EIO)
            case Action.DISK_FULL:
                self._fill_disk(held)
            case _:
                scheduler.kill_supervisor()
                scheduler.kill_trainer()
                if action in DAMAGES:
                    self._damage_newest(action)

    def _fill_disk(self, held: HeldProcess) -> None:
        held.release(errno.ENOSPC)
        self._breakpoints.arm(*_DISK_BREAKPOINTS)
        refused, end = 1, time.monotonic() + FULL_DISK_SECONDS
        while refused < FULL_DISK_REFUSALS and time.monotonic() < end:
            if (other := self._poll(_DISK_BREAKPOINTS)) is not None:
                other.release(errno.ENOSPC)
                refused += 1
        self._breakpoints.disarm()

    def _damage_newest(self, action: Action) -> None:
        """Damage the newest checkpoint once both processes are dead, before the next start."""
        for _ in self._until_deadline("the end of the processes that were killed"):
            if self._scheduler.is_down:
                break
            self.interrupts.check()
            self._breakpoints.poll()
        newest = self._store().all()[-1]
        records = newest.manifest.files.items()
        names = sorted(name for name, record in records if record.bytes)
        damage(newest.contents.folder / self.rng.choice(names), action, self.rng)
        self.damaged.append(newest.name)

    def _store(self) -> Store:
        return Store.open(self._scheduler.run, command=[])
