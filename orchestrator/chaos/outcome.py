"""What a run under faults leaves, and whether that is in order."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from orchestrator.chaos.faults import Planned
from orchestrator.chaos.final_state import read_content
from orchestrator.chaos.history import History
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import verify
from orchestrator.errors import OrchestratorError
from orchestrator.rundir.journal import Journal, JournalEvent


@dataclass
class Injection:
    """A fault that was injected, and what is known of it afterwards."""

    name: str
    at: float
    survived: bool = True
    exact: bool = True
    steps_lost: int = 0
    seconds_lost: float = 0.0
    problem: str | None = None


@dataclass
class Result:
    """What a run left: what it measured, its last state, and what was done to it."""

    directory: Path
    history: History
    content: dict[str, str]
    injections: list[Injection]
    missed: list[Planned]
    ended: float
    seconds: float
    launch_seconds: float
    problem: str | None = None
    """Why the run was lost, or what is wrong with what it left."""


def look_at_what_is_left(
    store: Store, damaged: Collection[str]
) -> tuple[str | None, dict[str, str]]:
    """What is wrong with the checkpoints of a finished run, and the content of the newest.

    ``damaged`` are the names of those that were damaged on purpose.
    """
    try:
        checkpoints = store.all()
        for checkpoint in checkpoints:
            verify(checkpoint)
        content = read_content(checkpoints[-1].state_file) if checkpoints else {}
    except OrchestratorError as error:
        return str(error), {}
    return _problem_of_quarantine(store, damaged), content


def _problem_of_quarantine(store: Store, damaged: Collection[str]) -> str | None:
    events, _ = Journal(store.run.journal_file).read()
    set_aside = {
        Path(event["path"]).name: event
        for event in events
        if event["event"] == JournalEvent.CHECKPOINT_QUARANTINED
    }
    for name in damaged:
        if name not in set_aside:
            return f"{name} was damaged, and nobody has noticed"
    for name, event in set_aside.items():
        # Two kills in a row while it is loaded are held against a checkpoint: by design.
        if name not in damaged and not event.get("demoted"):
            return f"{name} is bad, though nobody has damaged it: {event['reason']}"
    return None
