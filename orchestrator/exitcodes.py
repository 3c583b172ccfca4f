"""The exit statuses of ``orchestrator run`` and, with the same meaning, of the trainer."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """What a scheduler may conclude from the end of a run (docs/reference/exit-statuses.md)."""

    COMPLETE = 0
    MISUSE = 2
    NO_VALID_CHECKPOINT = 65
    IN_USE = 69
    GAVE_UP = 70
    STOPPED_UNSAVED = 74
    STOPPED_SAVED = 75
    CONFIGURATION = 78


# The trainer ends with one of these to say that trying again cannot help.
FINAL_FOR_TRAINER = frozenset(
    {ExitStatus.NO_VALID_CHECKPOINT, ExitStatus.IN_USE, ExitStatus.CONFIGURATION}
)
