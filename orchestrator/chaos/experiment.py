"""`orchestrator chaos`: tests on a user's own script that no fault changes its result."""

import json
import os
import random
import secrets
import shutil
import tempfile
import time
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from pathlib import Path

from orchestrator.chaos.comparison import Reference, check_undisturbed
from orchestrator.chaos.display import ProgressDisplay, print_report
from orchestrator.chaos.experiment_report import Report
from orchestrator.chaos.fault_plan import (
    PlannedFault,
    choose_faults,
    plan_trials,
    split_by_reach,
)
from orchestrator.chaos.faults import Action, Fault
from orchestrator.chaos.injector import TrialTiming
from orchestrator.chaos.interrupts import InterruptedBySignalError, Interrupts
from orchestrator.chaos.result import Injection, TrialResult
from orchestrator.chaos.step_history import Divergence
from orchestrator.chaos.trial import Trial
from orchestrator.config import Config
from orchestrator.system.temporary_places import temporary_parent
from orchestrator.terminal.printing import print_text

FAILED = 1
NO_FAULT = "no fault at all"
# A fault that misses its moment this many times in a row is given up.
MAX_MISSES = 3
SAVES_PER_RUN = 20
OF_FRAMEWORK = (
    "a framework's run: compared are its steps, the losses of its batches, what it logs over whole "
    "intervals, and the state in its last checkpoint's files; not which samples a batch has"
)


def chaos(arguments: Namespace) -> int:
    """Run a script under faults; return 1 if one was not survived, or changed the result."""
    options = {"nproc_per_node": arguments.nproc_per_node}
    ranks = Config.resolve(options, os.environ, Path.cwd(), arguments.command).world_size()
    chosen = choose_faults(arguments.faults, arguments.count, ranks)
    seed = secrets.randbelow(1 << 31) if arguments.seed is None else arguments.seed
    interrupts = Interrupts()
    root = Path(tempfile.mkdtemp(prefix="orchestrator-chaos-", dir=temporary_parent()))
    report = Report(arguments.command, seed, ranks)
    interruption: InterruptedBySignalError | None = None
    try:
        with ProgressDisplay(len(chosen)) as display:
            _Experiment(report, root, interrupts, display).run(chosen)
    except InterruptedBySignalError as error:
        interruption = error
    finally:
        if interruption is not None or not report.kept:
            shutil.rmtree(root, ignore_errors=True)
    if interruption is not None:
        display.print_line(f"ended by {interruption}; its runs are ended and removed")
        return interruption.end()
    if arguments.json:
        print_text(json.dumps(report.to_json()))
    else:
        print_report(report)
    return 0 if report.is_good else FAILED


class _Experiment:
    """Makes the reference, and then trials until every fault has been injected."""

    def __init__(
        self, report: Report, root: Path, interrupts: Interrupts, display: ProgressDisplay
    ) -> None:
        self._report = report
        self._root = root
        self._interrupts = interrupts
        self._display = display
        self._rng = random.Random(report.seed)
        self._timing = TrialTiming(0.0, 0.0, patience_seconds=float("inf"))
        self._misses: Counter[Fault] = Counter()
        self._began = time.monotonic()

    def run(self, chosen: list[Fault]) -> None:
        """Fill the report. Raises ConfigError, InterruptedBySignalError."""
        reference = self._make_reference()
        self._report.steps = steps = reference.history.steps
        self._timing = reference.timing
        reached = reference.history.reached
        waiting, self._report.not_reached = split_by_reach(chosen, reached)
        while waiting:
            injected = len(self._report.injections)
            missed: list[Fault] = []
            for group in plan_trials(waiting, steps, self._rng, self._report.ranks):
                # A run that was over before a fault came gets it sooner at the next try.
                plan = [replace(p, fraction=p.fraction / 2 ** self._misses[p.fault]) for p in group]
                missed += self._judge(self._run_trial(plan, steps), reference)
                if any(injection.name == NO_FAULT for injection in self._report.injections):
                    return  # a run that fails without a fault would fail again
            came = {injection.name for injection in self._report.injections[injected:]}
            for fault in {*missed}:
                self._misses[fault] = 0 if fault.name in came else self._misses[fault] + 1
            waiting = [fault for fault in missed if self._misses[fault] < MAX_MISSES]
            given_up = {fault.name for fault in missed} - {fault.name for fault in waiting}
            self._report.not_reached += sorted(given_up)

    def _make_reference(self) -> Reference:
        self._display.print_line("two runs without faults, to compare with")
        first = check_undisturbed(self._run_trial([], steps=None))
        second = check_undisturbed(self._run_trial([], first.history.steps))
        reference = Reference.of(first, second)
        if reference.history.is_of_framework:
            self._display.print_line(OF_FRAMEWORK)
        for name in reference.volatile:
            self._display.print_line(f"{name} differs from run to run: it is not compared")
        return reference

    def _run_trial(self, plan: list[PlannedFault], steps: int | None) -> TrialResult:
        """Run the script once with these faults; it saves often once its length is known."""
        self._report.trials += 1
        options = ["--nproc-per-node", str(self._report.ranks)]
        if steps:
            options += ["--every", f"{max(1, steps // SAVES_PER_RUN)}steps"]
        if any(planned.fault.action is Action.SIGSTOP_RANK for planned in plan):
            options += ["--hang-timeout", f"{self._timing.hang_seconds:.0f}s"]
        trial = Trial(
            run_arguments=[*options, "--", *self._report.command],
            directory=self._root / str(self._report.trials),
            timing=self._timing,
            interrupts=self._interrupts,
            rng=self._rng,
            display=self._display,
        )
        return trial.run(plan)

    def _judge(self, result: TrialResult, reference: Reference) -> list[Fault]:
        """Count the injected faults and their cost; return the faults still to inject."""
        injections = result.injections
        ends = [*(injection.at for injection in injections[1:]), result.ended]
        for injection, end in zip(injections, ends, strict=False):
            injection.steps_lost, injection.seconds_lost = result.history.cost(injection.at, end)
        if result.problem is not None:
            cause = _blame(injections, result.ended, result.problem)
            cause.survived = cause.exact = False
        else:
            blame_each(injections, reference.divergences(result))
        if any(injection.problem for injection in injections):
            self._report.kept.append(str(result.directory))
        else:
            shutil.rmtree(result.directory, ignore_errors=True)
        self._report.injections += injections
        self._report.seconds = time.monotonic() - self._began
        self._display.trial_ended(self._report)
        return [planned.fault for planned in result.missed]


def blame_each(injections: list[Injection], divergences: list[Divergence]) -> None:
    """Give each difference to the last fault before it: each attempt that differs counts.

    Only the first of a fault's differences is told. What differs after a later fault may be the
    consequence of an earlier one, and nothing shows that it is not.
    """
    earlier = ""
    for divergence in divergences:
        cause = _last_before(injections, divergence.at)
        if cause.exact:
            cause.exact = False
            cause.problem = divergence.text + earlier
            earlier = ", as it did already before this fault"


def _blame(injections: list[Injection], at: float, problem: str) -> Injection:
    """Give the problem to the last fault before that time, or to the run if there was none."""
    cause = _last_before(injections, at)
    cause.problem = problem
    return cause


def _last_before(injections: list[Injection], at: float) -> Injection:
    """Return the last fault before that time; one that stands for the run if there was none."""
    before = [injection for injection in injections if injection.at <= at]
    if not before:
        before = [Injection(NO_FAULT, at)]
        injections.append(before[0])
    return max(before, key=lambda injection: injection.at)
