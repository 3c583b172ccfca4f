"""The table of faults, each an action at a moment; the choice of faults, and their order."""

import random
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum

from orchestrator.errors import ConfigError

_CHOICE = re.compile(r"([a-z-]+(?:@[a-z-]+)?)(?::(\d+))?")
# With this distance between two faults, the cost of one shows before the next one comes.
STEPS_PER_FAULT = 4
MAX_FAULTS_PER_TRIAL = 20


class Action(StrEnum):
    """What a fault does. The trainer is the process that holds the session."""

    SIGKILL = "sigkill"
    SIGTERM = "sigterm"
    SIGTERM_ALL = "sigterm-all"
    KILL_SUPERVISOR = "kill-supervisor"
    KILL_BOTH = "kill-both"
    BIT_FLIP = "bit-flip"
    TORN_PAGE = "torn-page"
    TRUNCATION = "truncation"
    MISSING_FILE = "missing-file"
    DISK_FULL = "disk-full"
    IO_ERROR = "io-error"


TEXTS = {
    Action.SIGKILL: "SIGKILL to the trainer",
    Action.SIGTERM: "SIGTERM to the supervisor, as `orchestrator stop` and systemd do",
    Action.SIGTERM_ALL: "SIGTERM to every process, as SLURM does",
    Action.KILL_SUPERVISOR: "SIGKILL to the supervisor",
    Action.KILL_BOTH: "SIGKILL to supervisor and trainer",
    Action.BIT_FLIP: "both killed, and one bit of the newest checkpoint changed",
    Action.TORN_PAGE: "both killed, and a page of the newest checkpoint zeroed",
    Action.TRUNCATION: "both killed, and the newest checkpoint cut short",
    Action.MISSING_FILE: "both killed, and a file of the newest checkpoint removed",
    Action.DISK_FULL: "ENOSPC for writes to checkpoints, up to ten times",
    Action.IO_ERROR: "EIO once",
}
ENDS = (
    Action.SIGKILL,
    Action.SIGTERM,
    Action.SIGTERM_ALL,
    Action.KILL_SUPERVISOR,
    Action.KILL_BOTH,
)
DAMAGES = (Action.BIT_FLIP, Action.TORN_PAGE, Action.TRUNCATION, Action.MISSING_FILE)
DISK_ERRORS = (Action.DISK_FULL, Action.IO_ERROR)


@dataclass(frozen=True)
class Moment:
    """When a fault happens: while a process is held at one of ``breakpoints``.

    ``provoked_by`` is an action that is done first, to a run in its loop. With ``delayed`` the
    process continues and the fault happens some time later. With ``at_end`` only the last part of a
    run reaches the moment, with ``after_death`` only a run in which a process has died.
    """

    name: str
    text: str
    breakpoints: tuple[str, ...]
    provoked_by: Action | None = None
    delayed: bool = False
    at_end: bool = False
    after_death: bool = False


_WRITING = ("create", "write", "sync", "publish", "published")
# A framework saves and publishes in the trainer.
_SAVE = (
    *(f"supervisor:{name}" for name in _WRITING),
    *(f"trainer:{name}" for name in ("saving", *_WRITING)),
)
STEP = Moment("step", "between a batch and the end of its step", ("trainer:step",))
SAVE = Moment("save", "while a checkpoint is written and published", _SAVE)
ROTATION = Moment(
    "rotation", "while an old checkpoint is deleted", ("supervisor:delete", "supervisor:remove")
)
MOMENTS = (
    Moment("any", "at any time", ("trainer:step",), delayed=True),
    Moment(
        "import",
        "while the next trainer starts and imports",
        ("supervisor:launch",),
        provoked_by=Action.SIGKILL,
        delayed=True,
    ),
    Moment(
        "load",
        "while the trainer restores the state",
        ("trainer:load",),
        provoked_by=Action.SIGKILL,
        after_death=True,
    ),
    Moment(
        "first-batch",
        "at the first batch after a restart",
        ("trainer:batch",),
        provoked_by=Action.SIGKILL,
    ),
    STEP,
    Moment(
        "again",
        "at the step at which the trainer was killed before",
        STEP.breakpoints,
        provoked_by=Action.SIGKILL,
    ),
    Moment("edge", "between two epochs", ("trainer:edge",)),
    Moment("evaluation", "in session.poll(), or in a framework's evaluation", ("trainer:poll",)),
    Moment("snapshot", "while a snapshot is taken", ("trainer:begin", "trainer:commit")),
    SAVE,
    ROTATION,
    Moment(
        "orphan",
        "while the trainer saves by itself after its supervisor was killed",
        tuple(f"trainer:{name}" for name in _WRITING),
        provoked_by=Action.KILL_SUPERVISOR,
        after_death=True,
    ),
    Moment(
        "exit",
        "after the loop: before or after the last save, or after the session has ended",
        ("trainer:final", "trainer:done", "trainer:left"),
        at_end=True,
    ),
)


@dataclass(frozen=True)
class Fault:
    """An action at a moment."""

    action: Action
    moment: Moment

    @property
    def name(self) -> str:
        """The name that --faults takes, ACTION@MOMENT."""
        return f"{self.action}@{self.moment.name}"


def _fits(action: Action, moment: Moment) -> bool:
    if action in DAMAGES:
        return moment is STEP
    if action in DISK_ERRORS:
        return moment is SAVE or (moment is ROTATION and action is Action.IO_ERROR)
    # An orphaned trainer has no supervisor that could be stopped or killed.
    return moment.name != "orphan" or action is Action.SIGKILL


FAULTS = tuple(Fault(a, m) for a in Action for m in MOMENTS if _fits(a, m))


@dataclass(frozen=True)
class PlannedFault:
    """A fault with what was drawn for it: its first possible step, its breakpoint, its delay.

    ``fraction``, from 0 to 1, is the delay's share of the longest delay.
    """

    fault: Fault
    from_step: int
    breakpoint: str
    fraction: float


def choose_faults(text: str | None, count: int | None) -> list[Fault]:
    """Return the faults that ``--faults`` and ``--count`` ask for, in the order of the table.

    ``sigkill`` alone stands for every moment of that action. Raises ConfigError.
    """
    chosen: list[Fault] = []
    for word in text.split(",") if text else [""]:
        match = _CHOICE.fullmatch(word.strip()) if text else None
        found = [f for f in FAULTS if not text or (match and match[1] in (f.name, f.action))]
        if not found:
            raise ConfigError(
                f"cannot use --faults {text}: {word.strip()!r} is not a fault; write an action "
                f"({', '.join(Action)}), with a number (sigkill:5) or a moment (sigkill@save) if "
                f"you like; the moments are {', '.join(m.name for m in MOMENTS)}"
            )
        number = int(match[2]) if match and match[2] else len(found)
        chosen += [found[index % len(found)] for index in range(number)]
    if count is not None:
        chosen = [chosen[index % len(chosen)] for index in range(count)]
    return chosen


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


def plan_trials(faults: list[Fault], steps: int, rng: random.Random) -> list[list[PlannedFault]]:
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
            (_planned(fault, steps, rng) for fault in group),
            key=lambda planned: (planned.fault.moment.at_end, planned.from_step),
        )
        for group in groups
    ]


def _planned(fault: Fault, steps: int, rng: random.Random) -> PlannedFault:
    # A damaged checkpoint needs a predecessor, and a trainer that loads needs one checkpoint.
    least = steps // 2 if fault.action in DAMAGES else 2 if fault.moment.provoked_by else 0
    from_step = rng.randint(min(least, steps - 1), steps - 1)
    return PlannedFault(fault, from_step, rng.choice(fault.moment.breakpoints), rng.random())


def help_text() -> str:
    """Return the list of actions and moments for --help."""
    actions = [f"  {action:16}{text}" for action, text in TEXTS.items()]
    moments = [f"  {moment.name:16}{moment.text}" for moment in MOMENTS]
    return "\n".join(("actions:", *actions, "", "moments:", *moments))
