"""`orchestrator chaos`: proves on a user's own script that nothing is lost, or shows what is."""

import json
import random
import secrets
import shutil
import tempfile
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path

from orchestrator.chaos import faults as table
from orchestrator.chaos.faults import Fault, Planned
from orchestrator.chaos.interrupts import InterruptedBySignalError, Interrupts
from orchestrator.chaos.outcome import Injection, Result
from orchestrator.chaos.reference import Reference
from orchestrator.chaos.report import Report
from orchestrator.chaos.shown import Display, show
from orchestrator.chaos.trial import Pace, Trial

NOT_GOOD = 1
NO_FAULT = "no fault at all"
# So many times in a row may a fault come too late for its moment before it is left out.
TRIES = 3
# A run saves so often.
SAVES = 20


def chaos(arguments: Namespace) -> int:
    """Run a script under faults; ends with 1 if one was not survived, or not exactly."""
    chosen = table.choose(arguments.faults, arguments.count)
    seed = secrets.randbelow(1 << 31) if arguments.seed is None else arguments.seed
    interrupts = Interrupts()
    root = Path(tempfile.mkdtemp(prefix="orchestrator-chaos-"))
    report = Report(arguments.command, seed)
    interruption: InterruptedBySignalError | None = None
    try:
        with Display(len(chosen)) as display:
            _Experiment(report, root, interrupts, display).run(chosen)
    except InterruptedBySignalError as error:
        interruption = error
    finally:
        if interruption is not None or not report.kept:
            shutil.rmtree(root, ignore_errors=True)
    if interruption is not None:
        display.say(f"ended by {interruption}; its runs are ended and removed")
        return interruption.end()
    if arguments.json:
        print(json.dumps(report.to_json()))
    else:
        show(report)
    return 0 if report.is_good else NOT_GOOD


class _Experiment:
    """The reference, and then trials until every fault has been injected."""

    def __init__(
        self, report: Report, root: Path, interrupts: Interrupts, display: Display
    ) -> None:
        self._report = report
        self._root = root
        self._interrupts = interrupts
        self._display = display
        self._chance = random.Random(report.seed)
        self._pace = Pace(0.0, 0.0, float("inf"))
        self._tries: Counter[Fault] = Counter()
        self._began = time.monotonic()

    def run(self, chosen: list[Fault]) -> None:
        """Fill the report. Raises ConfigError, InterruptedBySignalError."""
        self._display.say("two runs without faults, to compare with")
        reference = Reference.of(lambda steps: self._try([], steps))
        for name in reference.volatile:
            self._display.say(f"{name} differs from run to run: it is not compared")
        self._report.steps = steps = reference.history.steps
        self._pace = reference.pace
        waiting, self._report.not_reached = table.reachable(chosen, reference.history.places)
        while waiting:
            injected = len(self._report.injections)
            missed: list[Fault] = []
            for group in table.plan(waiting, steps, self._chance):
                missed += self._judge(self._try(group, steps), reference)
                if any(injection.name == NO_FAULT for injection in self._report.injections):
                    return  # what ends or changes runs by itself would do so again
            came = {injection.name for injection in self._report.injections[injected:]}
            for fault in {*missed}:
                self._tries[fault] = 0 if fault.name in came else self._tries[fault] + 1
            waiting = [fault for fault in missed if self._tries[fault] < TRIES]
            given_up = {fault.name for fault in missed} - {fault.name for fault in waiting}
            self._report.not_reached += sorted(given_up)

    def _try(self, plan: list[Planned], steps: int | None) -> Result:
        """Run the script once, with these faults; it saves often once its length is known."""
        self._report.trials += 1
        trial = Trial(
            command=self._report.command,
            directory=self._root / str(self._report.trials),
            options=["--every", f"{max(1, steps // SAVES)}steps"] if steps else [],
            pace=self._pace,
            interrupts=self._interrupts,
            chance=self._chance,
            tell=self._display.injected,
        )
        return trial.run(plan)

    def _judge(self, result: Result, reference: Reference) -> list[Fault]:
        """Count what was injected, each fault with what it cost; the faults still to inject."""
        injections = result.injections
        ends = [*(injection.at for injection in injections[1:]), result.ended]
        for injection, end in zip(injections, ends, strict=False):
            injection.steps_lost, injection.seconds_lost = result.history.cost(injection.at, end)
        if result.problem is not None:
            blamed = _blamed(injections, result.ended, result.problem)
            blamed.survived = blamed.exact = False
        elif (divergence := reference.divergence(result)) is not None:
            _blamed(injections, divergence.at, divergence.text).exact = False
        if any(injection.problem for injection in injections):
            self._report.kept.append(str(result.directory))
        else:
            shutil.rmtree(result.directory, ignore_errors=True)
        self._report.injections += injections
        self._report.seconds = time.monotonic() - self._began
        self._display.trial_ended(self._report)
        return [planned.fault for planned in result.missed]


def _blamed(injections: list[Injection], at: float, problem: str) -> Injection:
    """The last fault before that time; the run itself where there was none."""
    before = [injection for injection in injections if injection.at <= at]
    if not before:
        before = [Injection(NO_FAULT, at)]
        injections.append(before[0])
    before[-1].problem = problem
    return before[-1]
