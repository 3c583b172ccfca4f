"""One run of the script under faults, from its start to its end or its loss."""

import errno
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.breakpoints import SUPERVISOR, TRAINER
from orchestrator.chaos.control import Control, Held
from orchestrator.chaos.damage import damage
from orchestrator.chaos.faults import DAMAGES, Action, Planned
from orchestrator.chaos.history import History
from orchestrator.chaos.interrupts import Interrupts
from orchestrator.chaos.outcome import Injection, Result, look_at_what_is_left
from orchestrator.chaos.scheduler import RunLostError, Scheduler
from orchestrator.checkpoint.store import Store

# How long a full disk stays full, in refused operations and in seconds, whichever ends first.
FULL_REFUSALS = 10
FULL_SECONDS = 8.0
# A damaged checkpoint must have a predecessor.
CHECKPOINTS_FOR_DAMAGE = 2
IN_LOOP = f"{TRAINER}:step"
_WRITING = ("create", "write", "sync", "publish")
_OF_A_FULL_DISK = tuple(f"{role}:{name}" for role in (SUPERVISOR, TRAINER) for name in _WRITING)


@dataclass(frozen=True)
class Pace:
    """How fast the script is: what takes how long, and how long at most.

    A fault "at any time" comes within ``later_seconds`` after a step; a run in which nothing
    happens for ``patience_seconds`` is lost.
    """

    launch_seconds: float
    later_seconds: float
    patience_seconds: float


@dataclass
class Trial:
    """Runs the command once."""

    command: list[str]
    directory: Path
    options: list[str]
    pace: Pace
    interrupts: Interrupts
    chance: random.Random
    tell: Callable[[], None] = lambda: None
    injections: list[Injection] = field(default_factory=list, init=False)
    damaged: list[str] = field(default_factory=list, init=False)

    def run(self, plan: Sequence[Planned] = ()) -> Result:
        """Start it, inject what is planned, see it to its end. Raises InterruptedBySignalError."""
        began, problem = time.monotonic(), None
        waiting = list(plan)
        missed: list[Planned] = []
        self._control = Control(self.directory)
        self._scheduler = Scheduler(self.command, self.directory, self.options)
        try:
            while waiting:
                planned = waiting.pop(0)
                if not self._inject(planned):
                    missed.append(planned)
            for _ in self._patiently("its end"):
                if self._scheduler.is_complete:
                    break
                self._tick(())
        except RunLostError as error:
            problem = str(error)
        finally:
            self._control.close()
            self._scheduler.end()
        ended = time.monotonic()
        history = History.read(self._control.history_file)
        content: dict[str, str] = {}
        if problem is None:
            problem, content = look_at_what_is_left(self._store(), self.damaged)
        first = history.records[0].at if history.records else ended
        return Result(
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

    def _patiently(self, what: str) -> Iterator[None]:
        """Go round until the caller has what it waits for. Raises RunLostError at the deadline."""
        deadline = time.monotonic() + self.pace.patience_seconds
        while time.monotonic() < deadline:
            yield
        raise RunLostError(f"waited {self.pace.patience_seconds:.0f} s in vain for {what}")

    def _tick(self, places: tuple[str, ...]) -> Held | None:
        self.interrupts.check()
        held = self._control.look(*places)
        if held is not None and held.place.startswith(TRAINER):
            self._scheduler.trainer_pid = held.facts["pid"]
        elif held is not None and "trainer" in held.facts:
            self._scheduler.trainer_pid = held.facts["trainer"]
        self._scheduler.look()
        return held

    def _hold(self, *places: str, from_step: int = 0) -> Held | None:
        """The next process at one of the places; None where the run ends before."""
        self._control.arm(*places, from_step=from_step)
        try:
            for _ in self._patiently(" or ".join(places)):
                held = self._tick(places)
                if held is not None or self._scheduler.is_complete:
                    return held
        finally:
            self._control.disarm()
        return None

    # --- injecting -----------------------------------------------------------------------------

    def _inject(self, planned: Planned) -> bool:
        """Whether the moment came before the run's end."""
        fault = planned.fault
        held = self._come_to(planned)
        if held is None:
            return False
        if fault.action in DAMAGES and len(self._store().all()) < CHECKPOINTS_FOR_DAMAGE:
            held.release()
            return False
        injection = Injection(fault.name, time.monotonic())
        self.injections.append(injection)
        self._do(fault.action, held)
        held.release()
        self.tell()
        return True

    def _come_to(self, planned: Planned) -> Held | None:
        """Bring the run to the moment; None where it ends before."""
        moment = planned.fault.moment
        if moment.at_end:
            return self._hold(planned.place)
        held = self._hold(IN_LOOP, from_step=planned.from_step)
        if held is None or (moment.provoke is None and planned.place == IN_LOOP):
            return self._later(held, planned) if moment.later else held
        step = int(held.facts["step"])
        if moment.provoke is not None:
            self._do(moment.provoke, held)
        held.release()
        # Again: not before the step at which it was killed.
        held = self._hold(planned.place, from_step=step if planned.place == IN_LOOP else 0)
        return self._later(held, planned) if moment.later else held

    def _later(self, held: Held | None, planned: Planned) -> Held | None:
        """Let the run go on for a time that chance has chosen; None where it ends meanwhile."""
        if held is not None:
            held.release()
            pace = self.pace
            longest = pace.launch_seconds if planned.fault.moment.provoke else pace.later_seconds
            end = time.monotonic() + planned.fraction * longest
            while time.monotonic() < end:
                self._tick(())
        return None if self._scheduler.is_complete else held

    def _do(self, action: Action, held: Held) -> None:
        scheduler = self._scheduler
        match action:
            case Action.SIGKILL:
                scheduler.kill_trainer()
            case Action.SIGTERM:
                scheduler.stop()
            case Action.SIGTERM_ALL:
                scheduler.stop_everybody()
            case Action.KILL_SUPERVISOR:
                scheduler.kill_supervisor()
            case Action.IO_ERROR:
                held.release(errno.EIO)
            case Action.DISK_FULL:
                self._fill_the_disk(held)
            case _:
                scheduler.kill_supervisor()
                scheduler.kill_trainer()
                if action in DAMAGES:
                    self._damage_newest(action)

    def _fill_the_disk(self, held: Held) -> None:
        held.release(errno.ENOSPC)
        self._control.arm(*_OF_A_FULL_DISK)
        refused, end = 1, time.monotonic() + FULL_SECONDS
        while refused < FULL_REFUSALS and time.monotonic() < end:
            if (also_held := self._tick(_OF_A_FULL_DISK)) is not None:
                also_held.release(errno.ENOSPC)
                refused += 1
        self._control.disarm()

    def _damage_newest(self, action: Action) -> None:
        """Once both are dead, and before a scheduler would start the run again."""
        for _ in self._patiently("the end of the processes that were killed"):
            if self._scheduler.is_down:
                break
            self.interrupts.check()
            self._control.look()
        newest = self._store().all()[-1]
        damage(newest.state_file, action, self.chance)
        self.damaged.append(newest.name)

    def _store(self) -> Store:
        return Store.open(self._scheduler.run, command=[])
