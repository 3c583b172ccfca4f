"""The supervisor's states, and the table of what leads from one to another."""

from enum import StrEnum

from orchestrator.telemetry.run_state import State


class Event(StrEnum):
    """What can happen to it."""

    SPAWNED = "spawned"
    CONNECTED = "connected"
    STOP = "stop"
    HANG = "hang"
    RECOVERED = "recovered"
    DEADLINE = "deadline"
    EXITED = "exited"
    COMPLETE = "complete"
    RETRY = "retry"
    DUE = "due"
    GIVE_UP = "give_up"


# STOPPING waits for the safe point and the save; HURRYING, after a second request, only for a save
# that has begun; HUNG for the stacks, and a moment for a trainer that comes back after all; KILLING
# for nothing but the end of every process.
TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.PREPARING, Event.SPAWNED): State.STARTING,
    (State.PREPARING, Event.STOP): State.STOPPED,
    (State.PREPARING, Event.GIVE_UP): State.FAILED,
    (State.STARTING, Event.CONNECTED): State.TRAINING,
    (State.STARTING, Event.STOP): State.STOPPING,
    (State.STARTING, Event.HANG): State.HUNG,
    (State.STARTING, Event.EXITED): State.JUDGING,
    (State.TRAINING, Event.STOP): State.STOPPING,
    (State.TRAINING, Event.HANG): State.HUNG,
    (State.TRAINING, Event.EXITED): State.JUDGING,
    (State.STOPPING, Event.CONNECTED): State.STOPPING,
    (State.STOPPING, Event.STOP): State.HURRYING,
    (State.STOPPING, Event.DEADLINE): State.KILLING,
    (State.STOPPING, Event.EXITED): State.JUDGING,
    (State.HURRYING, Event.CONNECTED): State.HURRYING,
    (State.HURRYING, Event.STOP): State.KILLING,
    (State.HURRYING, Event.DEADLINE): State.KILLING,
    (State.HURRYING, Event.EXITED): State.JUDGING,
    (State.HUNG, Event.CONNECTED): State.HUNG,
    (State.HUNG, Event.STOP): State.KILLING,
    (State.HUNG, Event.RECOVERED): State.TRAINING,
    (State.HUNG, Event.DEADLINE): State.KILLING,
    (State.HUNG, Event.EXITED): State.JUDGING,
    (State.KILLING, Event.CONNECTED): State.KILLING,
    (State.KILLING, Event.STOP): State.KILLING,
    (State.KILLING, Event.DEADLINE): State.KILLING,
    (State.KILLING, Event.EXITED): State.JUDGING,
    (State.JUDGING, Event.STOP): State.STOPPED,
    (State.JUDGING, Event.COMPLETE): State.COMPLETED,
    (State.JUDGING, Event.RETRY): State.WAITING,
    (State.JUDGING, Event.GIVE_UP): State.FAILED,
    (State.WAITING, Event.STOP): State.STOPPED,
    (State.WAITING, Event.DUE): State.PREPARING,
}


class StateMachine:
    """The current state; moves only along the table."""

    def __init__(self) -> None:
        self.state = State.PREPARING

    def handle(self, event: Event) -> State:
        """Move. Raises RuntimeError on an event that the state does not know: a defect of ours."""
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise RuntimeError(f"event {event} in state {self.state}") from None
        return self.state
