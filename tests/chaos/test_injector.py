"""What each action does, and to which rank."""

import json
import random
import signal
import socket
from collections.abc import Collection
from typing import Any, cast

import pytest

from orchestrator.chaos.breakpoint_server import HeldProcess
from orchestrator.chaos.fault_plan import PlannedFault
from orchestrator.chaos.faults import STEP, Action, Fault
from orchestrator.chaos.injector import EXCEPTION, Injector, TrialTiming
from orchestrator.chaos.watched_run import WatchedRun


class Scheduler:
    """Three ranks, which record the signals that they get."""

    def __init__(self) -> None:
        self.signals: dict[int, signal.Signals] = {}

    def trainers(self) -> dict[int, int]:
        return {0: 100, 1: 101, 2: 102}

    def signal_trainers(self, number: signal.Signals, ranks: Collection[int]) -> None:
        self.signals |= dict.fromkeys(ranks, number)


class Run:
    """A run in which a rank is held as soon as that is asked for."""

    def __init__(self) -> None:
        self.scheduler = Scheduler()
        self.trainer, chaos_end = socket.socketpair()
        self.held = HeldProcess(chaos_end, {"breakpoint": "trainer:step", "step": 5})
        self.asked_for: list[tuple[Any, ...]] = []

    def hold(self, place: str, rank: int, from_step: int = 0) -> HeldProcess:
        self.asked_for.append((place, rank, from_step))
        return self.held


@pytest.mark.parametrize(
    ("action", "signals"),
    [
        (Action.SIGKILL, {1: signal.SIGKILL}),
        (Action.SIGKILL_ALL_BUT_ONE, {0: signal.SIGKILL, 2: signal.SIGKILL}),
        (Action.SIGTERM_RANK, {1: signal.SIGTERM}),
        (Action.SIGSTOP_RANK, {1: signal.SIGSTOP}),
        (Action.EXCEPTION_RANK, {}),
    ],
)
def test_fault_meets_the_rank_that_was_drawn(
    action: Action, signals: dict[int, signal.Signals]
) -> None:
    """The drawn rank is held and gets the signal or the exception; of all but one it is the one."""
    run = Run()
    injector = Injector(cast(WatchedRun, run), TrialTiming(1, 1, 1), random.Random(0))
    with run.trainer:
        planned = PlannedFault(Fault(action, STEP), 4, "trainer:step", 0.0, rank=1)
        assert injector.inject(planned)
        answer = json.loads(run.trainer.recv(1000))
    assert run.asked_for[0] == ("trainer:step", 1, 4)
    assert run.scheduler.signals == signals
    text = EXCEPTION if action is Action.EXCEPTION_RANK else None
    assert answer == {"errno": None, "exception": text}


def test_rank_is_stopped_after_its_first_step() -> None:
    """A process that hangs in its first step may be compiling, and is noticed only much later."""
    run = Run()
    planned = PlannedFault(Fault(Action.SIGSTOP_RANK, STEP), 4, "trainer:step", 0.0, rank=1)
    with run.trainer:
        Injector(cast(WatchedRun, run), TrialTiming(1, 1, 1), random.Random(0)).inject(planned)
    assert run.asked_for == [("trainer:step", 1, 4), ("trainer:step", 1, 6)]
