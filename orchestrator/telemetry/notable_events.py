"""The events of a run that people are told of, as --on-event names them."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from orchestrator.rundir.journal import JournalEvent


class NotableEvent(StrEnum):
    """The values of ORCHESTRATOR_EVENT (docs/reference/environment.md)."""

    DONE = "done"
    GAVE_UP = "gave_up"
    HANG = "hang"
    STALLED = "stalled"
    UNHEALTHY = "unhealthy"


_NAMES = {
    JournalEvent.RUN_COMPLETED: NotableEvent.DONE,
    JournalEvent.GAVE_UP: NotableEvent.GAVE_UP,
    JournalEvent.HANG_DETECTED: NotableEvent.HANG,
    JournalEvent.STALLED: NotableEvent.STALLED,
}


class Notice(NamedTuple):
    """What a person is told: the event, and why it has come."""

    event: NotableEvent
    reason: str


class NotableEvents:
    """Finds notable events in the journal.

    Checkpoints that nothing resumes from are told once, until there is a healthy one again.
    """

    def __init__(self) -> None:
        self._is_healthy = True

    def notice_of(self, record: Mapping[str, Any]) -> Notice | None:
        """Return the notice of the next event of the journal; None for most."""
        match record["event"]:
            case JournalEvent.CHECKPOINT_PUBLISHED if record.get("healthy", True):
                self._is_healthy = True
                return None
            case JournalEvent.CHECKPOINT_PUBLISHED:
                return self._unhealthy("the weights are not finite")
            case JournalEvent.REPLICAS_DIFFER:
                return self._unhealthy("the ranks hold different values of the same tensors")
        if (event := _NAMES.get(record["event"])) is None:
            return None
        reasons = (record.get(name) for name in ("cause", "seems", "reason"))
        return Notice(event, "; ".join(str(reason) for reason in reasons if reason))

    def _unhealthy(self, cause: str) -> Notice | None:
        if not self._is_healthy:
            return None
        self._is_healthy = False
        text = f"{cause}: nothing resumes from what is saved now"
        return Notice(NotableEvent.UNHEALTHY, text)
