"""Injects the faults that are planned for a run, each at its moment."""

import errno
import random
import signal
import time
from dataclasses import dataclass

from orchestrator.breakpoints.table import SUPERVISOR, TRAINER
from orchestrator.chaos.breakpoint_server import HeldProcess
from orchestrator.chaos.damage import damage
from orchestrator.chaos.fault_plan import PlannedFault
from orchestrator.chaos.faults import DAMAGES, DAMAGES_OF_PARTS, Action
from orchestrator.chaos.result import Injection
from orchestrator.chaos.watched_run import WatchedRun
from orchestrator.checkpoint.contents import STATE_FILE

# A full disk stays full until one of these is reached: refused operations, or seconds.
FULL_DISK_REFUSALS = 10
FULL_DISK_SECONDS = 8.0
# A damaged checkpoint needs a predecessor.
CHECKPOINTS_FOR_DAMAGE = 2
EXCEPTION = "an exception that orchestrator chaos has raised"
STEP_BREAKPOINT = f"{TRAINER}:step"
_WRITING = ("create", "write", "sync", "publish")
_DISK_BREAKPOINTS = tuple(f"{role}:{name}" for role in (SUPERVISOR, TRAINER) for name in _WRITING)


@dataclass(frozen=True)
class TrialTiming:
    """The times of a trial, measured in an undisturbed run.

    A fault "at any time" comes within ``delay_seconds`` after a step. A run in which nothing
    happens for ``patience_seconds`` is lost; a step that takes ``hang_seconds`` hangs.
    """

    launch_seconds: float
    delay_seconds: float
    patience_seconds: float
    hang_seconds: float = 0.0


class Injector:
    """Injects faults into one run.

    Attributes:
        injections: The faults that were injected.
        damaged: The names of the checkpoints that were damaged.
    """

    def __init__(self, run: WatchedRun, timing: TrialTiming, rng: random.Random) -> None:
        self._run = run
        self._timing = timing
        self._rng = rng
        self.injections: list[Injection] = []
        self.damaged: list[str] = []

    def inject(self, planned: PlannedFault) -> bool:
        """Inject a fault; return whether its moment came before the run's end."""
        fault = planned.fault
        held = self._wait_for_moment(planned)
        if held is None:
            return False
        if fault.action in DAMAGES and len(self._run.store().all()) < CHECKPOINTS_FOR_DAMAGE:
            held.release()
            return False
        injection = Injection(fault.name, time.monotonic())
        self.injections.append(injection)
        self._act(fault.action, held, planned.rank)
        held.release()
        return True

    def _wait_for_moment(self, planned: PlannedFault) -> HeldProcess | None:
        """Bring the run to the fault's moment; return None if it ends before."""
        moment, rank = planned.fault.moment, planned.rank
        if moment.at_end:
            return self._run.hold(planned.breakpoint, rank)
        held = self._run.hold(STEP_BREAKPOINT, rank, from_step=planned.from_step)
        if held is not None and planned.fault.action is Action.SIGSTOP_RANK:
            held = self._one_step_on(held, rank)
        is_at_step = planned.breakpoint == STEP_BREAKPOINT
        if held is None or (moment.provoked_by is None and is_at_step):
            return self._delay(held, planned) if moment.delayed else held
        step = int(held.facts["step"])
        if moment.provoked_by is not None:
            self._act(moment.provoked_by, held, rank)
        held.release()
        # The second fault comes at the step of the first, and not before it.
        held = self._run.hold(planned.breakpoint, rank, from_step=step if is_at_step else 0)
        return self._delay(held, planned) if moment.delayed else held

    def _one_step_on(self, held: HeldProcess, rank: int) -> HeldProcess | None:
        """Hold the rank at its next step: for the first of a process half an hour is allowed."""
        held.release()
        return self._run.hold(STEP_BREAKPOINT, rank, from_step=int(held.facts["step"]) + 1)

    def _delay(self, held: HeldProcess | None, planned: PlannedFault) -> HeldProcess | None:
        """Let the run continue for a random time; return None if it completes in that time."""
        if held is not None:
            held.release()
            provoked = planned.fault.moment.provoked_by is not None
            longest = self._timing.launch_seconds if provoked else self._timing.delay_seconds
            end = time.monotonic() + planned.fraction * longest
            while time.monotonic() < end:
                self._run.poll()
        return None if self._run.scheduler.is_complete else held

    def _act(self, action: Action, held: HeldProcess, rank: int) -> None:
        scheduler = self._run.scheduler
        match action:
            case Action.SIGKILL | Action.SIGKILL_RANK_0:
                scheduler.signal_trainers(signal.SIGKILL, [rank])
            case Action.SIGKILL_ALL_BUT_ONE:
                scheduler.signal_trainers(signal.SIGKILL, scheduler.trainers().keys() - {rank})
            case Action.SIGTERM_RANK:
                scheduler.signal_trainers(signal.SIGTERM, [rank])
            case Action.SIGSTOP_RANK:
                scheduler.signal_trainers(signal.SIGSTOP, [rank])
            case Action.EXCEPTION_RANK:
                held.release(exception=EXCEPTION)
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
                scheduler.kill_trainers()
                if action in DAMAGES:
                    self._damage_newest(action)

    def _fill_disk(self, held: HeldProcess) -> None:
        held.release(errno.ENOSPC)
        self._run.breakpoints.arm(*_DISK_BREAKPOINTS)
        refused, end = 1, time.monotonic() + FULL_DISK_SECONDS
        while refused < FULL_DISK_REFUSALS and time.monotonic() < end:
            if (other := self._run.poll(_DISK_BREAKPOINTS)) is not None:
                other.release(errno.ENOSPC)
                refused += 1
        self._run.breakpoints.disarm()

    def _damage_newest(self, action: Action) -> None:
        """Damage the newest checkpoint once all processes are dead, before the next start."""
        self._run.wait_until_down()
        newest = self._run.store().all()[-1]
        records = newest.manifest.files.items()
        names = sorted(name for name, record in records if record.bytes)
        if action in DAMAGES_OF_PARTS:
            names.remove(STATE_FILE)
        damage(newest.contents.folder / self._rng.choice(names), action, self._rng)
        self.damaged.append(newest.name)
