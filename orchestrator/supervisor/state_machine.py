"""The supervisor's states, and the table of the transitions between them."""

from enum import StrEnum

from orchestrator.telemetry.run_state import State


class Event(StrEnum):
    """What can happen to a run."""

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


# STOPPING waits for the safe point and the save. HURRYING, after a second request, waits only for a
# save that has begun. HUNG waits for the stacks, and a moment for a trainer that comes back after
# all. KILLING waits for the end of every process, until its deadline.
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
    (State.KILLING, Event.DEADLINE): State.JUDGING,
    (State.KILLING, Event.EXITED): State.JUDGING,
    (State.JUDGING, Event.STOP): State.STOPPED,
    (State.JUDGING, Event.COMPLETE): State.COMPLETED,
    (State.JUDGING, Event.RETRY): State.WAITING,
    (State.JUDGING, Event.GIVE_UP): State.FAILED,
    (State.WAITING, Event.STOP): State.STOPPED,
    (State.WAITING, Event.DUE): State.PREPARING,
}


class StateMachine:
    """The current state, which moves only along the table."""

    def __init__(self) -> None:
        self.state = State.PREPARING

    def allows(self, event: Event) -> bool:
        """Return whether the event leads from the current state to another."""
        return (self.state, event) in TRANSITIONS

    def handle(self, event: Event) -> State:
        """Move, and return the new state.

        Raises RuntimeError on an event that the table does not have, which is a defect.
        """
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise RuntimeError(f"event {event} in state {self.state}") from None
        return self.state
