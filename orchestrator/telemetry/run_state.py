"""The states of a run, as people and programs see them."""

from enum import StrEnum


class State(StrEnum):
    """What the supervisor is doing about the run."""

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
