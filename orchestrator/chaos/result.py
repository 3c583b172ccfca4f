"""The result of a trial, and the check of the checkpoints that it left."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from orchestrator.chaos.checkpoint_content import content_of
from orchestrator.chaos.fault_plan import PlannedFault
from orchestrator.chaos.step_history import History
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import verify
from orchestrator.errors import OrchestratorError
from orchestrator.rundir.journal import Journal, JournalEvent


@dataclass
class Injection:
    """A fault that was injected at a time, and what it did to the run."""

    name: str
    at: float
    survived: bool = True
    exact: bool = True
    steps_lost: int = 0
    seconds_lost: float = 0.0
    problem: str | None = None


@dataclass
class TrialResult:
    """What a trial recorded, the content of its last checkpoint, and the faults it had.

    ``ended`` is in monotonic seconds; ``launch_seconds`` is the time until the first step.
    """

    directory: Path
    history: History
    content: dict[str, str]
    injections: list[Injection]
    missed: list[PlannedFault]
    ended: float
    seconds: float
    launch_seconds: float
    problem: str | None = None
    """Why the run was lost, or what is wrong with its checkpoints."""


def check_checkpoints(store: Store, damaged: Collection[str]) -> tuple[str | None, dict[str, str]]:
    """Return what is wrong with a finished run's checkpoints, and the content of the newest.

    ``damaged`` holds the names of the checkpoints that were damaged on purpose.
    """
    try:
        checkpoints = store.all()
        for checkpoint in checkpoints:
            verify(checkpoint)
            if checkpoint.manifest.differing:
                names = ", ".join(checkpoint.manifest.differing)
                return f"the ranks hold different values of {names} in {checkpoint.name}", {}
        content = content_of(checkpoints[-1]) if checkpoints else {}
    except OrchestratorError as error:
        return str(error), {}
    return _quarantine_problem(store, damaged), content


def _quarantine_problem(store: Store, damaged: Collection[str]) -> str | None:
    events, _ = Journal(store.run.journal_file).read()
    quarantined = {
        Path(event["path"]).name: event
        for event in events
        if event["event"] == JournalEvent.CHECKPOINT_QUARANTINED
    }
    for name in damaged:
        if name not in quarantined:
            return f"{name} was damaged, and no verification noticed it"
    for name, event in quarantined.items():
        # A checkpoint is demoted by design when several kills in a row come while it is loaded.
        if name not in damaged and not event.get("demoted"):
            return f"{name} is bad, though no fault has damaged it: {event['reason']}"
    return None
