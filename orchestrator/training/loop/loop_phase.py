"""The phases of a training loop, by which a checkpoint's content is chosen, and their table.

A resumed script executes the code between two safe points again where the session does not know
how far it came in it: before the first step of an epoch, and after the last batch (an evaluation,
a scheduler's step). A checkpoint that is made there must hold the state of the point where that
code began, the replay point.
"""

import enum


class LoopPhase(enum.Enum):
    """Which code of the script a resumed run would execute again."""

    STEPPING = "stepping"
    """None: a checkpoint holds the live state."""
    REPEATABLE = "repeatable"
    """The code since the replay point: a checkpoint holds the state of that point."""
    RESUMED = "resumed"
    """A checkpoint was restored, and the script has not come to its loop yet."""
    REPLAYING = "replaying"
    """The script repeats the code before the place of the checkpoint; the state is put back there.

    A checkpoint holds what the restored one held.
    """


class LoopEvent(enum.Enum):
    """What the script's loop does, as far as it changes the phase."""

    RESUME = "resume"
    BEGIN_EPOCH = "begin_epoch"
    BEGIN_PASS = "begin_pass"
    """The loop asks for the batches of a loader."""
    ARRIVE = "arrive"
    """The loop is at a place where the checkpoint may have been made."""
    END_PASS = "end_pass"
    """The batches of a loader are used up."""
    END_STEP = "end_step"
    END_EPOCH = "end_epoch"


# A pass ends after it has begun, so that it never ends in RESUMED.
TRANSITIONS: dict[tuple[LoopPhase, LoopEvent], LoopPhase] = {
    (LoopPhase.STEPPING, LoopEvent.RESUME): LoopPhase.RESUMED,
    (LoopPhase.STEPPING, LoopEvent.BEGIN_EPOCH): LoopPhase.REPEATABLE,
    (LoopPhase.STEPPING, LoopEvent.BEGIN_PASS): LoopPhase.STEPPING,
    (LoopPhase.STEPPING, LoopEvent.ARRIVE): LoopPhase.STEPPING,
    (LoopPhase.STEPPING, LoopEvent.END_PASS): LoopPhase.REPEATABLE,
    (LoopPhase.STEPPING, LoopEvent.END_STEP): LoopPhase.STEPPING,
    (LoopPhase.STEPPING, LoopEvent.END_EPOCH): LoopPhase.STEPPING,
    (LoopPhase.REPEATABLE, LoopEvent.BEGIN_EPOCH): LoopPhase.REPEATABLE,
    (LoopPhase.REPEATABLE, LoopEvent.BEGIN_PASS): LoopPhase.REPEATABLE,
    (LoopPhase.REPEATABLE, LoopEvent.ARRIVE): LoopPhase.REPEATABLE,
    (LoopPhase.REPEATABLE, LoopEvent.END_PASS): LoopPhase.REPEATABLE,
    (LoopPhase.REPEATABLE, LoopEvent.END_STEP): LoopPhase.STEPPING,
    (LoopPhase.REPEATABLE, LoopEvent.END_EPOCH): LoopPhase.STEPPING,
    (LoopPhase.RESUMED, LoopEvent.BEGIN_EPOCH): LoopPhase.REPLAYING,
    (LoopPhase.RESUMED, LoopEvent.BEGIN_PASS): LoopPhase.REPLAYING,
    (LoopPhase.RESUMED, LoopEvent.ARRIVE): LoopPhase.STEPPING,
    (LoopPhase.RESUMED, LoopEvent.END_STEP): LoopPhase.STEPPING,
    (LoopPhase.RESUMED, LoopEvent.END_EPOCH): LoopPhase.STEPPING,
    (LoopPhase.REPLAYING, LoopEvent.BEGIN_EPOCH): LoopPhase.REPLAYING,
    (LoopPhase.REPLAYING, LoopEvent.BEGIN_PASS): LoopPhase.REPLAYING,
    (LoopPhase.REPLAYING, LoopEvent.ARRIVE): LoopPhase.REPEATABLE,
    (LoopPhase.REPLAYING, LoopEvent.END_PASS): LoopPhase.REPLAYING,
    (LoopPhase.REPLAYING, LoopEvent.END_STEP): LoopPhase.STEPPING,
    (LoopPhase.REPLAYING, LoopEvent.END_EPOCH): LoopPhase.STEPPING,
}


def is_returning(phase: LoopPhase) -> bool:
    """Return whether a resumed script is still on its way to the place of the checkpoint."""
    return phase is LoopPhase.RESUMED or phase is LoopPhase.REPLAYING


def has_replay_point(phase: LoopPhase) -> bool:
    """Return whether a checkpoint made in this phase holds the state of a replay point."""
    return phase is LoopPhase.REPEATABLE or phase is LoopPhase.REPLAYING
