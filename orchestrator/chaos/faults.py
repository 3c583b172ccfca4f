"""The table of faults, each an action at a moment."""

from dataclasses import dataclass
from enum import StrEnum


class Action(StrEnum):
    """What a fault does. The trainer is the process that holds the session.

    With several ranks a fault has one rank that is drawn for it, the trainer of ``SIGKILL``.
    """

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
    SIGKILL_RANK_0 = "sigkill-rank-0"
    SIGKILL_ALL_BUT_ONE = "sigkill-all-but-one"
    SIGTERM_RANK = "sigterm-rank"
    SIGSTOP_RANK = "sigstop-rank"
    EXCEPTION_RANK = "exception-rank"
    BIT_FLIP_PART = "bit-flip-part"
    MISSING_PART = "missing-part"


TEXTS = {
    Action.SIGKILL: "SIGKILL to the trainer; of several ranks, to one",
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
    Action.SIGKILL_RANK_0: "SIGKILL to rank 0",
    Action.SIGKILL_ALL_BUT_ONE: "SIGKILL to all ranks but one",
    Action.SIGTERM_RANK: "SIGTERM to one rank alone",
    Action.SIGSTOP_RANK: "SIGSTOP to one rank, which hangs",
    Action.EXCEPTION_RANK: "an exception in one rank",
    Action.BIT_FLIP_PART: "all killed, and one bit of a rank's part (not rank 0's) changed",
    Action.MISSING_PART: "all killed, and the part of a rank (not rank 0) removed",
}
ENDS = (
    Action.SIGKILL,
    Action.SIGTERM,
    Action.SIGTERM_ALL,
    Action.KILL_SUPERVISOR,
    Action.KILL_BOTH,
)
ENDS_OF_RANKS = (Action.SIGKILL_RANK_0, Action.SIGKILL_ALL_BUT_ONE, Action.SIGTERM_RANK)
DAMAGES_OF_PARTS = (Action.BIT_FLIP_PART, Action.MISSING_PART)
DAMAGES = (
    *(Action.BIT_FLIP, Action.TORN_PAGE, Action.TRUNCATION, Action.MISSING_FILE),
    *DAMAGES_OF_PARTS,
)
DISK_ERRORS = (Action.DISK_FULL, Action.IO_ERROR)
OF_RANKS = (*ENDS_OF_RANKS, Action.SIGSTOP_RANK, Action.EXCEPTION_RANK, *DAMAGES_OF_PARTS)


@dataclass(frozen=True)
class Moment:
    """When a fault happens: while a process is held at one of ``breakpoints``.

    ``provoked_by`` is an action that is done first, to a run in its loop. With ``delayed`` the
    process continues and the fault happens some time later. With ``at_end`` only the last part of a
    run reaches the moment, with ``after_death`` only a run in which a process has died. Of several
    ranks only rank 0 is sure to reach one that is ``of_rank_0``.
    """

    name: str
    text: str
    breakpoints: tuple[str, ...]
    provoked_by: Action | None = None
    delayed: bool = False
    at_end: bool = False
    after_death: bool = False
    of_rank_0: bool = False


_WRITING = ("create", "write", "sync", "publish", "published")
# A framework saves and publishes in the trainer.
_SAVE = (
    *(f"supervisor:{name}" for name in _WRITING),
    *(f"trainer:{name}" for name in ("saving", *_WRITING)),
)
ANY = Moment("any", "at any time", ("trainer:step",), delayed=True)
LOAD = Moment(
    "load",
    "while the trainer restores the state",
    ("trainer:load",),
    provoked_by=Action.SIGKILL,
    after_death=True,
)
STEP = Moment("step", "between a batch and the end of its step", ("trainer:step",))
SNAPSHOT = Moment("snapshot", "while a snapshot is taken", ("trainer:begin", "trainer:commit"))
SAVE = Moment("save", "while a checkpoint is written and published", _SAVE)
ROTATION = Moment(
    "rotation", "while an old checkpoint is deleted", ("supervisor:delete", "supervisor:remove")
)
ORPHAN = Moment(
    "orphan",
    "while the trainer saves by itself after its supervisor was killed",
    tuple(f"trainer:{name}" for name in _WRITING),
    provoked_by=Action.KILL_SUPERVISOR,
    after_death=True,
)
EXIT = Moment(
    "exit",
    "after the loop: before or after the last save, or after the session has ended",
    ("trainer:final", "trainer:done", "trainer:left"),
    at_end=True,
)
ANNOUNCED = Moment(
    "announced",
    "between the announcement of a stop, save or snapshot and its step",
    ("supervisor:deciding", "supervisor:decided", "trainer:announced"),
)
PARTS = Moment(
    "parts",
    "while the parts of the ranks other than 0 are written",
    ("supervisor:part", "supervisor:part-sync"),
)
MOMENTS_OF_RANKS = (ANNOUNCED, PARTS)
MOMENTS = (
    ANY,
    Moment(
        "import",
        "while the next trainer starts and imports",
        ("supervisor:launch",),
        provoked_by=Action.SIGKILL,
        delayed=True,
    ),
    LOAD,
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
    Moment(
        "evaluation",
        "in session.poll(), or in a framework's evaluation",
        ("trainer:poll",),
        of_rank_0=True,
    ),
    SNAPSHOT,
    SAVE,
    ROTATION,
    ORPHAN,
    EXIT,
    *MOMENTS_OF_RANKS,
)
_MOMENTS_OF_ENDS_OF_RANKS = (ANY, LOAD, STEP, SNAPSHOT, EXIT, ANNOUNCED)


@dataclass(frozen=True)
class Fault:
    """An action at a moment."""

    action: Action
    moment: Moment

    @property
    def name(self) -> str:
        """The name that --faults takes, ACTION@MOMENT."""
        return f"{self.action}@{self.moment.name}"

    def is_for(self, ranks: int) -> bool:
        """Return whether a run of so many ranks can have this fault."""
        if ranks > 1:
            # Several ranks do not save by themselves.
            return self.moment.name != ORPHAN.name
        return self.action not in OF_RANKS and self.moment not in MOMENTS_OF_RANKS


def _fits(action: Action, moment: Moment) -> bool:
    if action in DAMAGES or action is Action.EXCEPTION_RANK:
        return moment is STEP
    if action in DISK_ERRORS:
        is_of_rotation = moment is ROTATION and action is Action.IO_ERROR
        return moment in (SAVE, PARTS) or is_of_rotation
    if action is Action.SIGSTOP_RANK:
        return moment in (STEP, ANNOUNCED)
    if action in ENDS_OF_RANKS:
        return moment in _MOMENTS_OF_ENDS_OF_RANKS
    # An orphaned trainer has no supervisor that could be stopped or killed.
    return moment is not ORPHAN or action is Action.SIGKILL


FAULTS = tuple(Fault(a, m) for a in Action for m in MOMENTS if _fits(a, m))


def help_text() -> str:
    """Return the list of actions and moments for --help."""
    actions = {action: f"  {action:20}{text}" for action, text in TEXTS.items()}
    moments = {moment: f"  {moment.name:20}{moment.text}" for moment in MOMENTS}
    return "\n".join(
        (
            *("actions:", *(line for a, line in actions.items() if a not in OF_RANKS), ""),
            *("moments:", *(line for m, line in moments.items() if m not in MOMENTS_OF_RANKS), ""),
            *("actions with several ranks:", *(actions[action] for action in OF_RANKS), ""),
            *("moments with several ranks:", *(moments[moment] for moment in MOMENTS_OF_RANKS)),
        )
    )
