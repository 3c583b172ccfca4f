"""The faults as data: what is done, at which moment; their choice, and their order by a seed."""

import random
import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.errors import ConfigError

_CHOICE = re.compile(r"([a-z-]+(?:@[a-z-]+)?)(?::(\d+))?")
# A run is kept long enough that what one fault costs is seen before the next one comes.
STEPS_PER_FAULT = 4
MOST_FAULTS_IN_A_TRIAL = 20


class Action(StrEnum):
    """What is done; ``trainer`` is the process that the session is in."""

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
    Action.MISSING_FILE: "both killed, and state.pt of the newest checkpoint removed",
    Action.DISK_FULL: "ENOSPC from all that is written to checkpoints, up to ten times",
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
    """When it is done: with a process held at one of ``places``.

    Before that, ``provoke`` is done to a run in its loop. With ``later`` the process goes on, and
    it is done some time afterwards; with ``at_end`` only the last part of a run reaches it, and
    with ``after_death`` only one in which something has died.
    """

    name: str
    text: str
    places: tuple[str, ...]
    provoke: Action | None = None
    later: bool = False
    at_end: bool = False
    after_death: bool = False


_WRITING = ("create", "write", "sync", "publish", "published")
_SAVE = tuple(f"supervisor:{name}" for name in _WRITING)
STEP = Moment("step", "between a batch and the end of its step", ("trainer:step",))
SAVE = Moment("save", "while a checkpoint is written and published", _SAVE)
ROTATION = Moment(
    "rotation", "while an old one is deleted", ("supervisor:delete", "supervisor:remove")
)
MOMENTS = (
    Moment("any", "at any time", ("trainer:step",), later=True),
    Moment(
        "import",
        "while the next trainer starts and imports",
        ("supervisor:launch",),
        provoke=Action.SIGKILL,
        later=True,
    ),
    Moment(
        "load",
        "while it restores the state",
        ("trainer:load",),
        provoke=Action.SIGKILL,
        after_death=True,
    ),
    Moment("first-batch", "at its first batch", ("trainer:batch",), provoke=Action.SIGKILL),
    STEP,
    Moment("again", "the step at which it was killed before", STEP.places, provoke=Action.SIGKILL),
    Moment("edge", "between two epochs", ("trainer:edge",)),
    Moment("evaluation", "in session.poll()", ("trainer:poll",)),
    Moment("snapshot", "while one is taken", ("trainer:begin", "trainer:commit")),
    SAVE,
    ROTATION,
    Moment(
        "orphan",
        "while the trainer saves by itself, its supervisor dead",
        tuple(f"trainer:{name}" for name in _WRITING),
        provoke=Action.KILL_SUPERVISOR,
        after_death=True,
    ),
    Moment(
        "exit",
        "after the loop: before and after the last save, after the goodbye",
        ("trainer:final", "trainer:done", "trainer:left"),
        at_end=True,
    ),
)


@dataclass(frozen=True)
class Fault:
    """An action at a moment; ``name`` is what --faults calls it."""

    action: Action
    moment: Moment

    @property
    def name(self) -> str:
        """ACTION@MOMENT."""
        return f"{self.action}@{self.moment.name}"


def _fits(action: Action, moment: Moment) -> bool:
    if action in DAMAGES:
        return moment is STEP
    if action in DISK_ERRORS:
        return moment is SAVE or (moment is ROTATION and action is Action.IO_ERROR)
    # An orphan has no supervisor that could be ended.
    return moment.name != "orphan" or action is Action.SIGKILL


FAULTS = tuple(Fault(a, m) for a in Action for m in MOMENTS if _fits(a, m))


@dataclass(frozen=True)
class Planned:
    """A fault with all that chance decides: from which step on, where exactly, how much later."""

    fault: Fault
    from_step: int
    place: str
    fraction: float


def choose(text: str | None, count: int | None) -> list[Fault]:
    """The faults that ``--faults`` and ``--count`` name, in the order of the table.

    ``sigkill`` means all moments of that action. Raises ConfigError.
    """
    chosen: list[Fault] = []
    for word in text.split(",") if text else [""]:
        match = _CHOICE.fullmatch(word.strip()) if text else None
        found = [f for f in FAULTS if not text or (match and match[1] in (f.name, f.action))]
        if not found:
            raise ConfigError(
                f"cannot use --faults {text}: {word.strip()!r} is no fault; there are "
                f"{', '.join(Action)}, each with a number (sigkill:5) or at a moment "
                f"(sigkill@save): {', '.join(m.name for m in MOMENTS)}"
            )
        number = int(match[2]) if match and match[2] else len(found)
        chosen += [found[index % len(found)] for index in range(number)]
    if count is not None:
        chosen = [chosen[index % len(chosen)] for index in range(count)]
    return chosen


def reachable(faults: Collection[Fault], places: Collection[str]) -> tuple[list[Fault], list[str]]:
    """The faults whose moment a run of this script reaches, and the names of the others.

    ``places`` are those that an undisturbed run has reached.
    """
    fitting = [
        fault
        for fault in faults
        if fault.moment.after_death or not {*fault.moment.places}.isdisjoint(places)
    ]
    return fitting, sorted({fault.name for fault in faults} - {fault.name for fault in fitting})


def plan(faults: list[Fault], steps: int, chance: random.Random) -> list[list[Planned]]:
    """Divide the faults into runs of ``steps`` steps; shuffled, in the order of their steps.

    A run ends once, so that each has one fault of the end at most.
    """
    per_trial = min(MOST_FAULTS_IN_A_TRIAL, max(1, steps // STEPS_PER_FAULT))
    shuffled = chance.sample(faults, len(faults))
    shuffled.sort(key=lambda fault: not fault.moment.at_end)
    of_the_end = sum(fault.moment.at_end for fault in faults)
    count = max(of_the_end, -(-len(faults) // per_trial))
    groups = [shuffled[index::count] for index in range(count)]
    return [
        sorted(
            (_placed(fault, steps, chance) for fault in group),
            key=lambda planned: (planned.fault.moment.at_end, planned.from_step),
        )
        for group in groups
    ]


def _placed(fault: Fault, steps: int, chance: random.Random) -> Planned:
    # Two checkpoints must be there for a damaged one to have a predecessor, one to be loaded.
    least = steps // 2 if fault.action in DAMAGES else 2 if fault.moment.provoke else 0
    from_step = chance.randint(min(least, steps - 1), steps - 1)
    return Planned(fault, from_step, chance.choice(fault.moment.places), chance.random())


def help_text() -> str:
    """The actions and moments, for --help."""
    actions = [f"  {action:16}{text}" for action, text in TEXTS.items()]
    moments = [f"  {moment.name:16}{moment.text}" for moment in MOMENTS]
    return "\n".join(("actions:", *actions, "", "moments:", *moments))
