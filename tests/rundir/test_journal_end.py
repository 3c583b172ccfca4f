"""The newest events of a journal."""

import json
import os
from pathlib import Path

from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.journal_end import newest_events


def test_newest_events_come_in_their_order(tmp_path: Path) -> None:
    """Damaged lines between them are skipped, and a torn one at the end."""
    journal = Journal(tmp_path / "journal.jsonl")
    for step in range(5):
        journal.write(JournalEvent.RESUMED, step=step)
        with open(journal.path, "ab") as file:
            file.write(b"\xff damaged\n" + json.dumps({"event": "unknown"}).encode() + b"\n")
    with open(journal.path, "ab") as file:
        file.write(b'{"event": "resum')
    assert [event["step"] for event in newest_events(journal.path, 3, 1 << 20)] == [2, 3, 4]
    assert len(newest_events(journal.path, 99, 1 << 20)) == 5


def test_what_cannot_be_read_has_no_events(tmp_path: Path) -> None:
    """A missing journal, a FIFO and a hole of a terabyte have none."""
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "hole", "wb") as file:
        file.truncate(1 << 40)
    assert [newest_events(tmp_path / name, 3, 1 << 20) for name in ("no", "fifo", "hole")] == [
        []
    ] * 3


def test_only_the_end_of_a_journal_is_read(tmp_path: Path) -> None:
    """Events, or damaged lines, of any number and size cost what fits into the limit."""
    journal = Journal(tmp_path / "journal.jsonl")
    for step in range(50):
        journal.write(JournalEvent.RESUMED, step=step, exactness="x" * 1000)
        with open(journal.path, "ab") as file:
            file.write(b"\n")
    assert [event["step"] for event in newest_events(journal.path, 50, 5000)] == [46, 47, 48, 49]
    assert newest_events(journal.path, 50, 100) == []
