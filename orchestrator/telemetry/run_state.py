"""The states of a run that `orchestrator status` shows."""

from enum import StrEnum


class State(StrEnum):
    """The current activity of the supervisor."""

    PREPARING = "preparing"
    STARTING = "starting"
    TRAINING = "training"
    STOPPING = "stopping"
    HURRYING = "hurrying"
    HUNG = "hung"
    KILLING = "killing"
    JUDGING = "judging"
    WAITING = "waiting"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"
