"""When is looked at what a script saves for itself, and what may have happened by then."""

from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from orchestrator.checkpoint.checkpoint import Checkpoint


class Moment(Enum):
    """When is looked."""

    FIRST = auto()
    """No trainer of the run has run yet: what is there was there before it."""
    BEFORE = auto()
    """No trainer runs, but one may have been killed together with its supervisor."""
    RUNNING = auto()
    ENDED_WELL = auto()
    """The trainer has ended with status 0, and so with everything written."""
    KILLED = auto()
    """It has ended otherwise, perhaps in the middle of a save."""


NO_TRAINER = (Moment.FIRST, Moment.BEFORE)


@dataclass(frozen=True)
class Sealed:
    """Contents have become a checkpoint; ``oldest_ns`` is when the first of them was written."""

    checkpoint: Checkpoint
    oldest_ns: int


@dataclass(frozen=True)
class Withdrawn:
    """The script has deleted or rewritten what was a checkpoint."""

    checkpoint: Checkpoint
    reason: str


@dataclass(frozen=True)
class SetAside:
    """What a killed save has left was moved out of the way."""

    path: Path
    where: Path
    reason: str


@dataclass(frozen=True)
class LeftAlone:
    """It is no checkpoint, and nobody saw that a trainer of this run wrote it."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Failed:
    """The disk refused something."""

    path: Path
    problem: str


ScanEvent = Sealed | Withdrawn | SetAside | LeftAlone | Failed
