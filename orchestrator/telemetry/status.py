"""The content of `orchestrator status`, from the live supervisor or from the disk."""

import contextlib
import os
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import json_metrics
from orchestrator.checkpoint.store import Store
from orchestrator.exitcodes import ExitStatus
from orchestrator.rundir.goodput import Goodput
from orchestrator.rundir.history import History
from orchestrator.rundir.history_index import read_history
from orchestrator.rundir.journal import JournalEvent
from orchestrator.telemetry.failure import failure_in
from orchestrator.telemetry.progress import Progress
from orchestrator.telemetry.run_state import State

# Another user's journal may take minutes; the index keeps what was read of this user's own.
LONGEST_READING_SECONDS = 30.0

_STATE_AFTER: dict[str, State] = {
    JournalEvent.RUN_COMPLETED: State.COMPLETED,
    JournalEvent.RUN_STOPPED: State.STOPPED,
    JournalEvent.GAVE_UP: State.FAILED,
}


@dataclass
class Status:
    """The keys of `status --json`. None means unknown; ages and durations are in seconds."""

    run_id: str
    state: str
    run_dir: str
    supervisor_pid: int | None = None
    trainer_pid: int | None = None
    spare_pid: int | None = None
    spare: dict[str, Any] | None = None
    attempt: int | None = None
    restarts: int = 0
    restarts_by_kind: dict[str, int] = field(default_factory=dict)
    trained_steps: int | None = None
    epoch: int | None = None
    step: int | None = None
    progress: Progress = field(default_factory=Progress)
    goodput: dict[str, Any] = field(default_factory=lambda: Goodput().to_json())
    phase: str | None = None
    silent_seconds: float | None = None
    hang_budget_seconds: float | None = None
    metrics: dict[str, float | str] = field(default_factory=dict)
    newest_checkpoint: dict[str, Any] | None = None
    newest_snapshot: dict[str, Any] | None = None
    snapshots: dict[str, Any] | None = None
    lose_at_most_seconds: float | None = None
    machine_loses_at_most_seconds: float | None = None
    ranks: list[dict[str, Any]] | None = None
    problem: str | None = None
    failure: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the status as a dict that can be written as JSON."""
        return asdict(self)


def exit_status_after(history: History) -> ExitStatus:
    """Return the exit status of a run's last supervisor; 74 if it was killed."""
    last = history.last_mark
    match last.get("event"):
        case JournalEvent.RUN_COMPLETED:
            return ExitStatus.COMPLETE
        case JournalEvent.RUN_STOPPED | JournalEvent.GAVE_UP:
            with contextlib.suppress(ValueError):  # another program may have written the event
                return ExitStatus(last.get("status", ExitStatus.GAVE_UP))
            return ExitStatus.GAVE_UP
    return ExitStatus.STOPPED_UNSAVED


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the ``newest_checkpoint`` object of the status."""
    try:
        created = datetime.fromisoformat(checkpoint.manifest.time)
        age = (datetime.now(UTC) - created).total_seconds()
    except (ValueError, TypeError):  # another program may have written a time in another form
        age = 0.0
    return {
        "path": str(checkpoint.shown_path),
        "step": checkpoint.manifest.step,
        "age_seconds": round(max(0.0, age), 3),
    }


def status_from_disk(store: Store, most_seconds: float = LONGEST_READING_SECONDS) -> Status:
    """Return the status of a run that no process is training in.

    Raises ConfigError when it cannot be read, or not in this time.
    """
    run, deadline = store.run, time.monotonic() + most_seconds
    history = read_history(run, deadline)
    # Other events may follow the one of the end: a second Ctrl-C, a late deletion.
    last: str = history.last_mark.get("event", "")
    state: str = _STATE_AFTER.get(last, "interrupted")
    if os.path.exists(run.done_file):
        state = State.COMPLETED
    elif not last:
        state = "new"
    status = Status(run_id=store.run_id, state=state, run_dir=str(run.root))
    if state == State.FAILED and (failure := failure_in(history, run)) is not None:
        status.failure = asdict(failure)
    status.attempt, status.restarts = history.attempt, history.restarts
    status.restarts_by_kind = history.restarts_by_kind
    status.goodput = history.goodput.to_json()
    if history.last_save.get("event") == JournalEvent.CHECKPOINT_FAILED:
        status.problem = str(history.last_save.get("problem"))
    if (newest := store.newest_healthy(deadline)) is not None:
        status.newest_checkpoint = describe_checkpoint(newest)
        status.step, status.epoch = newest.manifest.step, newest.manifest.epoch
        status.metrics = json_metrics(newest.manifest.metrics)
        status.progress = Progress.of(status.step, status.epoch)
    if last in _STATE_AFTER and history.last_mark.get("step") is not None:
        status.progress = Progress.at_end(history.last_mark)
    return status
