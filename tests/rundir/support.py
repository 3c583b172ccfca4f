"""Histories for tests."""

from collections.abc import Iterable
from typing import Any

from orchestrator.rundir.history import History


def history_of(events: Iterable[dict[str, Any]]) -> History:
    """Return the history of these events, oldest first."""
    history = History()
    for event in events:
        history.add(event)
    return history
