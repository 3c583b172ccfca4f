"""The status of a run that no process is training in."""

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.store import Store
from orchestrator.rundir.history import MOST_KINDS
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.telemetry.progress import Progress
from orchestrator.telemetry.status import Status, describe_checkpoint, status_from_disk
from tests.checkpoint.support import RUN_ID, new_store, publish

STARTED = JournalEvent.RUN_STARTED, JournalEvent.ATTEMPT_STARTED
TRAINED = *STARTED, JournalEvent.CHECKPOINT_PUBLISHED


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "run")


def write_events(store: Store, *events: JournalEvent) -> None:
    for event in events:
        Journal(store.run.journal_file).write(event, 1)


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ((), "new"),
        (STARTED, "interrupted"),
        (TRAINED, "interrupted"),
        ((*TRAINED, JournalEvent.STOP_REQUESTED), "interrupted"),
        ((*TRAINED, JournalEvent.RUN_STOPPED), "stopped"),
        ((*TRAINED, JournalEvent.RUN_STOPPED, *STARTED), "interrupted"),
        ((*TRAINED, JournalEvent.RUN_STOPPED, *TRAINED, JournalEvent.RUN_STOPPED), "stopped"),
        ((*TRAINED, JournalEvent.RUN_COMPLETED), "completed"),
        ((*TRAINED, JournalEvent.RUN_COMPLETED, *STARTED), "interrupted"),
        ((*TRAINED, JournalEvent.GAVE_UP), "failed"),
        ((*TRAINED, JournalEvent.GAVE_UP, *TRAINED, JournalEvent.RUN_COMPLETED), "completed"),
        # Events that follow the end of the run do not change its state.
        ((*TRAINED, JournalEvent.RUN_STOPPED, JournalEvent.STOP_REQUESTED), "stopped"),
        ((*TRAINED, JournalEvent.RUN_STOPPED, JournalEvent.CHECKPOINT_DELETED), "stopped"),
        ((*TRAINED, JournalEvent.GAVE_UP, JournalEvent.STOP_REQUESTED), "failed"),
    ],
)
def test_state_follows_from_the_journal(
    store: Store, events: tuple[JournalEvent, ...], state: str
) -> None:
    """A run that ended has the state of its end; one whose last start has no end is interrupted."""
    write_events(store, *events)
    assert status_from_disk(store).state == state


def test_run_with_a_done_file_is_completed(store: Store) -> None:
    """done.json decides, even if the journal is incomplete."""
    write_events(store, *TRAINED)
    store.run.done_file.write_text("{}")
    assert status_from_disk(store).state == "completed"


def test_progress_is_that_of_the_newest_checkpoint(store: Store) -> None:
    """Step, epoch, metrics and age are those of the checkpoint that a resumed run would load."""
    made = datetime.now(UTC) - timedelta(minutes=10)
    publish(store, 100)
    publish(store, 250, epoch=2, metrics={"loss": 0.25}, time=made.isoformat())
    status = status_from_disk(store)
    assert (status.step, status.epoch, status.metrics) == (250, 2, {"loss": 0.25})
    assert status.newest_checkpoint is not None
    assert status.newest_checkpoint["path"] == str(store.all()[-1].path)
    assert status.newest_checkpoint["step"] == 250
    assert 600 <= status.newest_checkpoint["age_seconds"] < 660


def test_progress_of_an_ended_run_is_that_of_its_end(store: Store) -> None:
    """Its journal knows the last step, also one that is not saved, and the totals."""
    log = Journal(store.run.journal_file)
    publish(store, 100, epoch=1)
    write_events(store, *TRAINED)
    assert status_from_disk(store).progress == Progress(step=100, epoch=1)
    log.write(JournalEvent.GAVE_UP, 1, step=150, epoch=1, total_steps=300, total_epochs=3)
    status = status_from_disk(store)
    assert status.step == 100
    assert status.progress == Progress(150, total_steps=300, epoch=1, total_epochs=3, percent=50.0)


def test_run_that_ended_before_totals_were_recorded_is_shown(store: Store) -> None:
    """The journal of an older version has a step at the end or none, and no totals."""
    log = Journal(store.run.journal_file)
    publish(store, 100, epoch=1)
    log.write(JournalEvent.RUN_STOPPED, 1, status=75)
    assert status_from_disk(store).progress == Progress(step=100, epoch=1)
    log.write(JournalEvent.RUN_STOPPED, 1, status=75, step=120)
    assert status_from_disk(store).progress == Progress(step=120)


def test_failed_save_is_shown_until_the_next_one_succeeds(store: Store) -> None:
    """``problem`` has the reason until a later checkpoint has been published."""
    log = Journal(store.run.journal_file)
    write_events(store, *TRAINED)
    assert status_from_disk(store).problem is None
    log.write(JournalEvent.CHECKPOINT_FAILED, 1, step=7, problem="cannot save: the disk is full")
    write_events(store, JournalEvent.RUN_STOPPED)
    assert status_from_disk(store).problem == "cannot save: the disk is full"
    write_events(store, *TRAINED)
    assert status_from_disk(store).problem is None


def test_failed_run_says_why_until_it_runs_again(store: Store) -> None:
    """`failure` is there while the state is failed, and null after the next start."""
    log = Journal(store.run.journal_file)
    write_events(store, *STARTED)
    log.write(JournalEvent.GAVE_UP, cause="no attempt could begin", reason="full", status=78)
    failure = status_from_disk(store).failure
    assert failure is not None
    assert (failure["status"], failure["reason"]) == (78, "full")
    write_events(store, *STARTED)
    assert status_from_disk(store).failure is None


def test_newest_checkpoint_is_a_healthy_one(store: Store) -> None:
    """A checkpoint with non-finite values is not shown as the newest checkpoint."""
    publish(store, 100)
    publish(store, 200, healthy=False, metrics={"loss": math.nan})
    status = status_from_disk(store)
    assert status.newest_checkpoint is not None
    assert status.newest_checkpoint["step"] == 100


def test_attempts_and_restarts_are_counted(store: Store) -> None:
    """The attempt is the last one's number; the restarts are those of the whole run."""
    log = Journal(store.run.journal_file)
    for attempt in (1, 2, 3):
        log.write(JournalEvent.ATTEMPT_STARTED, attempt)
        log.write(JournalEvent.RESTART_SCHEDULED)
    log.write(JournalEvent.RUN_STOPPED)
    status = status_from_disk(store)
    assert (status.attempt, status.restarts) == (3, 3)


def test_restarts_are_counted_by_what_ended_the_attempt_before(store: Store) -> None:
    """A restart counts for the kind of end in the journal; one without an end counts for none."""
    log = Journal(store.run.journal_file)
    log.write(JournalEvent.RESTART_SCHEDULED)
    for kind in ("killed", "hang", "killed"):
        log.write(JournalEvent.ATTEMPT_EXITED, 1, kind=kind)
        log.write(JournalEvent.RESTART_SCHEDULED)
    log.write(JournalEvent.ATTEMPT_EXITED, 1, kind="complete")
    status = status_from_disk(store)
    assert (status.restarts, status.restarts_by_kind) == (4, {"killed": 2, "hang": 1})


def test_kinds_that_another_program_has_written_are_bounded(store: Store) -> None:
    """A journal with a new kind in every event makes no status without bounds."""
    log = Journal(store.run.journal_file)
    for number in range(2 * MOST_KINDS):
        log.write(JournalEvent.ATTEMPT_EXITED, 1, kind=f"kind {number}")
        log.write(JournalEvent.RESTART_SCHEDULED)
    status = status_from_disk(store)
    assert (status.restarts, len(status.restarts_by_kind)) == (2 * MOST_KINDS, MOST_KINDS)


def test_attempts_that_are_not_numbers_are_ignored(store: Store) -> None:
    """A journal line with an invalid attempt does not make the status fail."""
    with store.run.journal_file.open("a") as file:
        for attempt in ('"two"', "1", "null", "[3]"):
            file.write('{"event": "attempt_started", "attempt": ' + attempt + "}\n")
    assert status_from_disk(store).attempt == 1


KEYS = {
    "run_id",
    "state",
    "supervisor_pid",
    "trainer_pid",
    "spare_pid",
    "attempt",
    "restarts",
    "epoch",
    "step",
    "progress",
    "metrics",
    "newest_checkpoint",
    "newest_snapshot",
    "lose_at_most_seconds",
    "machine_loses_at_most_seconds",
    "problem",
    "failure",
}


def test_unknown_values_are_null(store: Store) -> None:
    """Every key is present from the start, with null for an unknown value."""
    content = status_from_disk(store).to_json()
    assert content.keys() >= KEYS
    known = {"run_id": RUN_ID, "state": "new", "run_dir": str(store.run.root), "restarts": 0}
    assert set(content.pop("progress").values()) == {None}
    assert set(content.pop("goodput").pop("seconds").values()) == {0}
    assert {key: value for key, value in content.items() if value not in (None, {})} == known


def test_status_is_strict_json(store: Store) -> None:
    """The status contains no NaN, which JSON does not support."""
    publish(store, 100, metrics={"loss": 0.5, "accuracy": math.nan})
    text = json.dumps(status_from_disk(store).to_json(), allow_nan=False)
    assert json.loads(text)["metrics"] == {"loss": 0.5, "accuracy": "nan"}
    assert json.loads(json.dumps(Status("a", "new", "b").to_json()))["metrics"] == {}


@pytest.mark.parametrize("time", ["", "yesterday", "2026-01-01T00:00:00", "0001-01-01T00:00:00Z"])
def test_checkpoint_with_an_invalid_time_is_shown(store: Store, time: str) -> None:
    """The status is shown whatever time a manifest contains."""
    publish(store, 100, time=time)
    content: dict[str, Any] = status_from_disk(store).to_json()
    json.dumps(content)


def test_age_is_never_negative(store: Store) -> None:
    """A checkpoint from the future, after the clock was set back, has the age 0."""
    later = datetime.now(UTC) + timedelta(hours=1)
    made = publish(store, 100, time=later.isoformat())
    assert describe_checkpoint(made)["age_seconds"] == 0.0


def test_damaged_journal_is_read_as_far_as_possible(store: Store) -> None:
    """The state follows from the lines that can be read."""
    write_events(store, *TRAINED, JournalEvent.RUN_STOPPED)
    with store.run.journal_file.open("ab") as file:
        file.write(b'{"event": "run_sta\n\xff\xff\n')
    assert status_from_disk(store).state == "stopped"
