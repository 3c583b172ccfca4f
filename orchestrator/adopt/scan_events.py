"""The moments at which adopt mode scans a script's saves, and the events that a scan reports."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from orchestrator.checkpoint.checkpoint import Checkpoint


class Moment(Enum):
    """When a scan takes place, relative to the trainers of the run."""

    FIRST_START = "first start"
    """No trainer of the run has run yet: every save is from before the run."""
    LATER_START = "later start"
    """No trainer runs, but one may have been killed together with its supervisor."""
    RUNNING = "running"
    """A trainer runs."""
    SUCCEEDED = "succeeded"
    """The trainer has ended with status 0: everything is written."""
    FAILED = "failed"
    """The trainer has ended in another way, perhaps in the middle of a save."""


STARTS = (Moment.FIRST_START, Moment.LATER_START)


@dataclass(frozen=True)
class Sealed:
    """A save has become a checkpoint; ``after_stop``: it was written after the request to stop."""

    checkpoint: Checkpoint
    after_stop: bool


@dataclass(frozen=True)
class Withdrawn:
    """The script has deleted or rewritten a save that was a checkpoint."""

    checkpoint: Checkpoint
    reason: str


@dataclass(frozen=True)
class SetAside:
    """The leftover of a killed save was moved out of the way, to ``moved_to``."""

    path: Path
    moved_to: Path
    reason: str


@dataclass(frozen=True)
class LeftAlone:
    """A file or directory is no checkpoint, and no trainer of this run was seen writing it."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Failed:
    """The disk refused to seal a save or to set it aside."""

    path: Path
    problem: str


@dataclass(frozen=True)
class Renumbered:
    """An attempt that has resumed counts from zero again."""

    path: Path
    number: int
    resumed_number: int


@dataclass(frozen=True)
class Lacking:
    """A unit is not whole, and the script does not seem to complete it; ``problem`` says why."""

    path: Path
    problem: str


ScanEvent = Sealed | Withdrawn | SetAside | LeftAlone | Failed | Renumbered | Lacking
