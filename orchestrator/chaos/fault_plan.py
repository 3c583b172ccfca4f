"""The choice of faults for an experiment, and their distribution over its trials."""

import random
import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from orchestrator.chaos.faults import DAMAGES, FAULTS, MOMENTS, Action, Fault
from orchestrator.errors import ConfigError

_CHOICE = re.compile(r"([a-z0-9-]+(?:@[a-z-]+)?)(?::(\d+))?")
# With this distance between two faults, the cost of one shows before the next one comes.
STEPS_PER_FAULT = 4
MAX_FAULTS_PER_TRIAL = 20


@dataclass(frozen=True)
class PlannedFault:
    """A fault with what was drawn for it: its first possible step, its breakpoint, its delay.

    ``fraction``, from 0 to 1, is the delay's share of the longest delay. ``rank`` is the one that
    the fault meets; it is held at the breakpoint if that is its own.
    """

    fault: Fault
    from_step: int
    breakpoint: str
    fraction: float
    rank: int = 0


def choose_faults(text: str | None, count: int | None, ranks: int = 1) -> list[Fault]:
    """Return the faults that ``--faults`` and ``--count`` ask for, in the order of the table.

    ``sigkill`` alone stands for every moment of that action that a run of so many ranks can have.
    Raises ConfigError.
    """
    chosen: list[Fault] = []
    for word in text.split(",") if text else [""]:
        match = _CHOICE.fullmatch(word.strip()) if text else None
        named = [f for f in FAULTS if not text or (match and match[1] in (f.name, f.action))]
        if not named:
            raise ConfigError(
                f"cannot use --faults {text}: {word.strip()!r} is not a fault; write an action "
                f"({', '.join(Action)}), with a number (sigkill:5) or a moment (sigkill@save) if "
                f"you like; the moments are {', '.join(m.name for m in MOMENTS)}"
            )
        found = [fault for fault in named if fault.is_for(ranks)]
        if not found:
            raise ConfigError(_not_for(named[0], ranks))
        number = int(match[2]) if match and match[2] else len(found)
        chosen += [found[index % len(found)] for index in range(number)]
    if count is not None:
        chosen = [chosen[index % len(chosen)] for index in range(count)]
    return chosen


def _not_for(fault: Fault, ranks: int) -> str:
    if ranks > 1:
        return (
            f"cannot use --faults {fault.name}: several ranks end with their supervisor, and save "
            "nothing by themselves; leave it out"
        )
    return (
        f"cannot use --faults {fault.name}: it is a fault of several ranks; leave it out, or give "
        "--nproc-per-node N for a script that trains with several processes"
    )


def split_by_reach(
    faults: Collection[Fault], reached: Collection[str]
) -> tuple[list[Fault], list[str]]:
    """Return the faults whose moment a run of this script reaches, and the names of the others.

    ``reached`` holds the breakpoints that an undisturbed run has reached. The moments of the faults
    keep only those, except where only a death brings them about.
    """
    fitting = []
    for fault in faults:
        breakpoints = tuple(name for name in fault.moment.breakpoints if name in reached)
        if breakpoints:
            fitting.append(replace(fault, moment=replace(fault.moment, breakpoints=breakpoints)))
        elif fault.moment.after_death:
            fitting.append(fault)
    return fitting, sorted({fault.name for fault in faults} - {fault.name for fault in fitting})


def plan_trials(
    faults: list[Fault], steps: int, rng: random.Random, ranks: int = 1
) -> list[list[PlannedFault]]:
    """Shuffle the faults and divide them among trials of ``steps`` steps, in the order of steps.

    A run ends once, so each trial has at most one fault at its end.
    """
    per_trial = min(MAX_FAULTS_PER_TRIAL, max(1, steps // STEPS_PER_FAULT))
    shuffled = rng.sample(faults, len(faults))
    shuffled.sort(key=lambda fault: not fault.moment.at_end)
    at_end = sum(fault.moment.at_end for fault in faults)
    count = max(at_end, -(-len(faults) // per_trial))
    groups = [shuffled[index::count] for index in range(count)]
    return [
        sorted(
            (_planned(fault, steps, rng, ranks) for fault in group),
            key=lambda planned: (planned.fault.moment.at_end, planned.from_step),
        )
        for group in groups
    ]


def _planned(fault: Fault, steps: int, rng: random.Random, ranks: int) -> PlannedFault:
    # A damaged checkpoint needs a predecessor, and a trainer that loads needs one checkpoint.
    least = steps // 2 if fault.action in DAMAGES else 2 if fault.moment.provoked_by else 0
    from_step = rng.randint(min(least, steps - 1), steps - 1)
    planned = PlannedFault(fault, from_step, rng.choice(fault.moment.breakpoints), rng.random())
    if ranks == 1 or fault.action is Action.SIGKILL_RANK_0 or fault.moment.of_rank_0:
        return planned
    return replace(planned, rank=rng.randrange(ranks))
