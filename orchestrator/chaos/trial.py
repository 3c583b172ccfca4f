"""A trial: one run of the script under faults, from its start until it is complete or lost."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.chaos.display import ProgressDisplay
from orchestrator.chaos.fault_plan import PlannedFault
from orchestrator.chaos.injector import Injector, TrialTiming
from orchestrator.chaos.interrupts import Interrupts
from orchestrator.chaos.result import TrialResult, check_checkpoints
from orchestrator.chaos.scheduler import RunLostError
from orchestrator.chaos.step_history import History
from orchestrator.chaos.watched_run import WatchedRun


@dataclass
class Trial:
    """Runs the command once; ``run_arguments`` are those of `orchestrator run`."""

    run_arguments: list[str]
    directory: Path
    timing: TrialTiming
    interrupts: Interrupts
    rng: random.Random
    display: ProgressDisplay

    def run(self, plan: Sequence[PlannedFault] = ()) -> TrialResult:
        """Start the run, inject the planned faults, and wait until it is complete or lost.

        Raises InterruptedBySignalError.
        """
        began, problem = time.monotonic(), None
        waiting = list(plan)
        missed: list[PlannedFault] = []
        run = WatchedRun(
            self.run_arguments, self.directory, self.timing.patience_seconds, self.interrupts
        )
        injector = Injector(run, self.timing, self.rng)
        try:
            while waiting:
                planned = waiting.pop(0)
                if injector.inject(planned):
                    self.display.fault_injected()
                else:
                    missed.append(planned)
            for _ in run.until_deadline("the run's end"):
                if run.scheduler.is_complete:
                    break
                run.poll()
        except RunLostError as error:
            problem = str(error)
        finally:
            run.close()
        ended = time.monotonic()
        history = History.read(run.breakpoints.history_file)
        content: dict[str, str] = {}
        if problem is None:
            problem, content = check_checkpoints(run.store(), injector.damaged)
        first = history.records[0].at if history.records else ended
        return TrialResult(
            directory=self.directory,
            history=history,
            content=content,
            injections=injector.injections,
            missed=missed + waiting,
            ended=ended,
            seconds=ended - began,
            launch_seconds=first - began,
            problem=problem,
        )
