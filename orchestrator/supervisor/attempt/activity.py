"""What a trainer is doing, and for how long it has shown no sign of life."""

from dataclasses import dataclass
from enum import StrEnum


class Activity(StrEnum):
    """What the trainer is busy with."""

    LAUNCH = "launch"
    """The command runs, the session is not open: a command without one never leaves this."""
    START = "start"
    """From the session's opening to the first safe point: restoring, compiling, a first step."""
    STEP = "step"
    EVALUATE = "evaluate"
    """From the end of an epoch's batches, or a poll(), to the next step."""
    SAVE = "save"
    SCRIPT = "script"
    """A script that saves for itself: from outside, all that it does looks alike."""
    END = "end"
    """The session was left by an exception; the process has yet to end."""
    DONE = "done"
    """Training is complete or stopped; what the script does after that is not watched."""


@dataclass(frozen=True)
class Silence:
    """How long there was no sign of life, and how long is allowed (None: any time)."""

    activity: Activity
    step: int
    seconds: float
    timeout_seconds: float | None

    @property
    def is_hang(self) -> bool:
        """Whether it has lasted too long."""
        return self.timeout_seconds is not None and self.seconds > self.timeout_seconds
