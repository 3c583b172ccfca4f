"""The journal: appended to by several processes, readable after any damage."""

import json
import os
import resource
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.rundir.journal import Journal, JournalEvent, utc_now
from tests.support import in_child

WRITER = """
import sys
from pathlib import Path
from orchestrator.rundir.journal import Journal, JournalEvent
journal = Journal(Path(sys.argv[1]))
print(flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    journal.write(JournalEvent.RESUMED, writer=sys.argv[2], number=number, text="x" * 5000)
sys.exit(journal.lost)
"""


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def test_events_are_read_in_the_order_they_were_written(journal: Journal) -> None:
    """Each event is read with its attempt, its facts and its time in UTC, ISO 8601."""
    journal.write(JournalEvent.RUN_STARTED, command=["python", "train.py"])
    journal.write(JournalEvent.ATTEMPT_STARTED, 1, pid=7, place=Path("runs/a"))
    events, damaged = journal.read()
    assert damaged == 0
    times = [datetime.fromisoformat(event.pop("time")) for event in events]
    uptimes = [event.pop("uptime_seconds") for event in events]
    assert uptimes == sorted(uptimes)
    assert uptimes[0] >= 0
    assert events == [
        {"event": "run_started", "attempt": None, "command": ["python", "train.py"]},
        {"event": "attempt_started", "attempt": 1, "pid": 7, "place": "runs/a"},
    ]
    assert times == sorted(times)
    assert all(time.utcoffset() == timedelta(0) for time in times)


def test_event_time_is_the_current_time() -> None:
    """The time of an event is the current time in UTC."""
    before = datetime.now(UTC)
    assert before - timedelta(seconds=1) < datetime.fromisoformat(utc_now()) <= datetime.now(UTC)


def test_event_is_one_line(journal: Journal) -> None:
    """A line break in a value does not break the line of the event."""
    journal.write(JournalEvent.GAVE_UP, cause="one\ntwo\r\n\u2028three")
    assert journal.path.read_bytes().count(b"\n") == 1
    assert journal.read()[0][0]["cause"] == "one\ntwo\r\n\u2028three"


def test_missing_journal_has_no_events(journal: Journal) -> None:
    """A journal that does not exist yet has no events."""
    assert journal.read() == ([], 0)


@pytest.mark.parametrize(
    "line",
    [
        b"\0" * 100,
        b"\xff\xfe garbage",
        b"[]",
        b"7",
        b"null",
        b'{"event": "no_such_event"}',
        b'{"event": ["run_started"]}',
        b'{"time": "2026-01-01T00:00:00"}',
        b'{"event": "run_star',
        pytest.param(b"[" * 100_000, id="nested"),
    ],
)
def test_damaged_lines_are_skipped_and_counted(journal: Journal, line: bytes) -> None:
    """The lines before and after a damaged line are read."""
    journal.write(JournalEvent.RUN_STARTED)
    with journal.path.open("ab") as file:
        file.write(line + b"\n")
    journal.write(JournalEvent.RUN_STOPPED)
    events, damaged = journal.read()
    assert [event["event"] for event in events] == ["run_started", "run_stopped"]
    assert damaged == 1


def test_empty_lines_do_not_count_as_damage(journal: Journal) -> None:
    """A blank line is skipped and does not count as damaged."""
    journal.write(JournalEvent.RUN_STARTED)
    with journal.path.open("ab") as file:
        file.write(b"\n\n")
    journal.write(JournalEvent.RUN_STOPPED)
    assert len(journal.read()[0]) == 2
    assert journal.read()[1] == 0


def test_torn_last_line_loses_only_itself(journal: Journal) -> None:
    """The event that follows an incomplete line begins on a line of its own."""
    for event in (JournalEvent.RUN_STARTED, JournalEvent.RESUMED):
        journal.write(event)
    whole = journal.path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last + 1, len(whole) - 1):
        journal.path.write_bytes(whole[:end])
        journal.write(JournalEvent.RUN_STOPPED)
        events, damaged = journal.read()
        assert [event["event"] for event in events] == ["run_started", "run_stopped"]
        assert damaged == 1


def test_last_line_without_its_line_break_is_read(journal: Journal) -> None:
    """A complete event without its line break is read."""
    journal.write(JournalEvent.RUN_STARTED)
    journal.path.write_bytes(journal.path.read_bytes()[:-1])
    journal.write(JournalEvent.RUN_STOPPED)
    assert [event["event"] for event in journal.read()[0]] == ["run_started", "run_stopped"]
    assert journal.read()[1] == 0


@pytest.mark.processes
def test_two_processes_write_at_the_same_time(journal: Journal) -> None:
    """No event of two processes that write at the same time is lost or mixed."""
    count = 300
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(journal.path), name, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in "ab"
    ]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    events, damaged = journal.read()
    assert damaged == 0
    for name in "ab":
        numbers = [event["number"] for event in events if event["writer"] == name]
        assert numbers == list(range(count))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a disk always full")
def test_full_disk_loses_events_and_counts_them(tmp_path: Path) -> None:
    """Writing to a full disk does not raise, and counts the lost events."""
    (tmp_path / "journal.jsonl").symlink_to("/dev/full")
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write(JournalEvent.RUN_STARTED)
    journal.write(JournalEvent.RUN_STOPPED)
    assert journal.lost == 2


def test_journal_that_cannot_be_opened_loses_events(tmp_path: Path) -> None:
    """A directory in place of the journal, or a missing parent directory, does not raise."""
    for path in (tmp_path, tmp_path / "missing" / "journal.jsonl"):
        journal = Journal(path)
        journal.write(JournalEvent.RUN_STARTED)
        assert journal.lost == 1


@pytest.mark.processes
def test_partly_written_event_is_lost(journal: Journal) -> None:
    """An event of which only the beginning fits on the disk counts as lost."""
    journal.write(JournalEvent.RUN_STARTED)
    room = len(journal.path.read_bytes()) + 20

    def write_without_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        journal.write(JournalEvent.RUN_STOPPED)
        assert journal.path.stat().st_size == room
        os._exit(10 + journal.lost)

    assert in_child(write_without_room) == 11
    journal.write(JournalEvent.RUN_COMPLETED)
    events, damaged = journal.read()
    assert [event["event"] for event in events] == ["run_started", "run_completed"]
    assert damaged == 1


def test_event_names_are_those_of_the_contract() -> None:
    """The event names that other programs read do not change."""
    assert {event.value for event in JournalEvent} >= {
        "run_started",
        "attempt_started",
        "resumed",
        "checkpoint_published",
        "checkpoint_failed",
        "checkpoint_quarantined",
        "checkpoint_deleted",
        "stop_requested",
        "stop_noticed",
        "attempt_exited",
        "restart_scheduled",
        "gave_up",
        "run_stopped",
        "run_completed",
    }


def test_journal_line_is_plain_json(journal: Journal) -> None:
    """A program without this package can read the journal."""
    journal.write(JournalEvent.RUN_STARTED, 3)
    (line,) = journal.path.read_text().splitlines()
    assert json.loads(line)["event"] == "run_started"
