"""The journal's events about checkpoints, field by field."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint import checkpoint_journal
from orchestrator.checkpoint.checkpoint_journal import CheckpointJournal
from orchestrator.checkpoint.store import Store
from orchestrator.rundir.journal import Journal
from tests.checkpoint.support import new_store, publish


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "run")


@pytest.fixture
def journal(store: Store) -> CheckpointJournal:
    return CheckpointJournal(Journal(store.run.journal_file))


def events(store: Store) -> list[dict[str, Any]]:
    """The facts of all events, without their times."""
    found, damaged = Journal(store.run.journal_file).read()
    assert damaged == 0
    times = {"time", "uptime_seconds", "asleep_seconds"}
    return [{key: event[key] for key in event if key not in times} for event in found]


def test_publication_has_the_facts_of_the_manifest(
    store: Store, journal: CheckpointJournal
) -> None:
    """Readers of the journal need not open the manifest; JSON knows no infinite metrics."""
    checkpoint = publish(store, 200, metrics={"loss": float("inf")})
    journal.record_publication(checkpoint, 3, seconds=0.25)
    assert events(store) == [
        {
            "event": "checkpoint_published",
            "attempt": 3,
            "path": str(checkpoint.path),
            "adopted": None,
            "step": 200,
            "epoch": 2,
            "reason": "periodic",
            "bytes": checkpoint.manifest.total_bytes,
            "healthy": True,
            "metrics": {"loss": "inf"},
            "seconds": 0.25,
        }
    ]


def test_import_names_its_source(store: Store, journal: CheckpointJournal) -> None:
    """Only an imported checkpoint has the file that it comes from, and no time is known."""
    journal.record_publication(publish(store, 1), source=Path("model.pt"))
    (event,) = events(store)
    assert (event["source"], event["seconds"], event["attempt"]) == ("model.pt", None, None)


def test_deletion_by_the_script_has_a_reason(store: Store, journal: CheckpointJournal) -> None:
    """A deletion by retention needs none."""
    checkpoint = publish(store, 1)
    journal.record_deletion(checkpoint, 2)
    journal.record_deletion(checkpoint, 2, reason="the script has deleted it")
    retained, withdrawn = events(store)
    facts = {"attempt": 2, "path": str(checkpoint.path), "step": 1}
    assert retained == {"event": "checkpoint_deleted", **facts}
    assert withdrawn == retained | {"reason": "the script has deleted it"}


def test_quarantine_says_whether_the_checkpoint_was_valid(
    store: Store, journal: CheckpointJournal
) -> None:
    """A demoted checkpoint was valid: it made way for an older one."""
    path = store.run.checkpoints / "step-000000000001"
    journal.record_quarantine(path, "wrong digest")
    journal.record_quarantine(path, "it failed twice", 4, demoted=True)
    assert [(event["attempt"], event["demoted"]) for event in events(store)] == [
        (None, False),
        (4, True),
    ]


def test_failure_names_the_save_that_was_not_sealed(
    store: Store, journal: CheckpointJournal
) -> None:
    """A script's own save has a path and no step; other failures have a step and no path."""
    journal.record_failure("the disk is full", 1, step=7)
    journal.record_failure("the disk is full", 1, adopted="/out/a.pt")
    failed, not_sealed = events(store)
    assert failed == {
        "event": "checkpoint_failed",
        "attempt": 1,
        "step": 7,
        "problem": "the disk is full",
    }
    assert not_sealed == failed | {"step": None, "adopted": "/out/a.pt"}


def test_snapshots_are_journalled_once_in_a_while(
    store: Store, journal: CheckpointJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that takes a snapshot every second does not fill its journal."""
    for step in (1, 2, 3):
        journal.record_snapshot({"step": step}, 1)
    assert [event["step"] for event in events(store)] == [1]
    monkeypatch.setattr(checkpoint_journal, "SNAPSHOT_SAMPLE_SECONDS", 0.0)
    journal.record_snapshot({"step": 4}, 1)
    assert [event["step"] for event in events(store)] == [1, 4]
