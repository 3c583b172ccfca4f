"""The exit statuses of ``orchestrator run``; the trainer's have the same meaning."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """What the end of a run tells a scheduler (docs/reference/exit-statuses.md)."""

    COMPLETE = 0
    MISUSE = 2
    NO_VALID_CHECKPOINT = 65
    IN_USE = 69
    GAVE_UP = 70
    STOPPED_UNSAVED = 74
    STOPPED_SAVED = 75
    CONFIGURATION = 78


# A trainer that ends with one of these says that a restart cannot help.
FINAL_FOR_TRAINER = frozenset(
    {ExitStatus.NO_VALID_CHECKPOINT, ExitStatus.IN_USE, ExitStatus.CONFIGURATION}
)
