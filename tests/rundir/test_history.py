"""The history of a run: as the whole journal tells it, without reading all of it again."""

import json
import random
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ConfigError
from orchestrator.rundir import history_index
from orchestrator.rundir.history import digest_of
from orchestrator.rundir.history_index import HistoryIndexer, read_history, rotate_journal
from orchestrator.rundir.journal import MAXIMUM_EVENT_BYTES, Journal, JournalEvent
from orchestrator.rundir.paths import RunDir
from orchestrator.supervisor.recovery.failure_budget import FailureBudget, TotalLimits
from tests.rundir.support import history_of


@pytest.fixture
def indexed_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the index whenever anything was read."""
    monkeypatch.setattr(history_index, "INDEX_EVERY_BYTES", 1)


def random_events(chance: random.Random, count: int) -> list[dict[str, Any]]:
    """Return the events of a run as a bad week may leave them, also without some ends."""
    events: list[dict[str, Any]] = []
    for _ in range(count):
        step = chance.randrange(12)
        path = f"runs/a/checkpoints/step-{step:012d}"
        left = chance.choice([None, None, step])
        event: dict[str, Any] = chance.choice(
            [
                {"event": "attempt_started"},
                {"event": "attempt_started"},
                {"event": "checkpoint_published", "step": step, "epoch": 0, "path": path,
                 "healthy": chance.random() < 0.8, "seconds": chance.choice([None, 0.5])},
                {"event": "checkpoint_deleted", "step": step, "path": path},
                {"event": "checkpoint_quarantined", "path": path, "demoted": step % 2 == 0},
                {"event": "checkpoint_failed", "problem": "full"},
                {"event": "attempt_exited", "kind": chance.choice(["exception", "killed",
                 "stopped"]), "step": step, "connected": True, "fingerprint": "f",
                 "reached_safe_point": step > 6, "left_step": left, "left_epoch": 0,
                 "last_lines": ["x"]},
                {"event": "restart_scheduled"},
                {"event": "gave_up", "status": 70},
                {"event": "run_stopped", "status": 75},
            ]
        )  # fmt: skip
        events.append(event | {"attempt": len(events)})
    return events


def test_budget_of_the_history_is_that_of_the_whole_journal() -> None:
    """What the history leaves out of a journal changes no decision about restarts."""
    for seed in range(1000):
        chance = random.Random(seed)
        events = random_events(chance, chance.randrange(40))
        kept = history_of(events).since_progress
        assert FailureBudget.from_journal(5, kept) == FailureBudget.from_journal(5, events), seed


def test_attempts_and_their_begin_survive_progress_and_rotation(run: RunDir) -> None:
    """Total limits count all attempts since the run last gave up, whatever was saved since."""
    journal = Journal(run.journal_file)
    for name in ("attempt_started", "gave_up", "attempt_started"):
        journal.write(JournalEvent(name))
    begun = read_history(run).begun
    journal.write(JournalEvent.CHECKPOINT_PUBLISHED, step=7, path="step-000000000007")
    journal.write(JournalEvent.ATTEMPT_STARTED)
    rotate_journal(run, 0)
    history = read_history(run)
    assert (history.attempts_since_give_up, history.begun) == (2, begun)
    assert begun is not None
    budget = FailureBudget.from_history(5, history, TotalLimits(attempts=2, seconds=60))
    assert budget.attempts_are_spent
    assert budget.begun == datetime.fromisoformat(begun).timestamp()


@pytest.mark.usefixtures("indexed_often")
@pytest.mark.parametrize("seed", range(8))
def test_history_is_the_same_with_an_index(run: RunDir, seed: int) -> None:
    """Reading on from the index at any moment gives what reading the whole journal gives."""
    chance = random.Random(seed)
    events = random_events(chance, 40)
    journal = Journal(run.journal_file)
    for event in events:
        journal.write(
            JournalEvent(event["event"]), **{k: event[k] for k in event.keys() - {"event"}}
        )
        if chance.random() < 0.3:
            with journal.path.open("ab") as file:
                file.write(chance.choice([b"", b"\n", b"torn {\n", b'{"event": "run_st']))
        if chance.random() < 0.5:
            read_history(run)
    found = read_history(run)
    assert run.journal_index_file.exists()
    read, damaged = journal.read()
    expected = history_of(read)
    expected.damaged = damaged
    assert found == expected


@pytest.mark.usefixtures("indexed_often")
@pytest.mark.parametrize(
    "damage",
    [
        "deleted",
        "cut",
        "binary",
        "of another version",
        "changed",
        "journal cut",
        "journal replaced",
    ],
)
def test_index_that_does_not_fit_the_journal_is_not_used(run: RunDir, damage: str) -> None:
    """A damaged index, and one of another journal, are thrown away."""
    journal = Journal(run.journal_file)
    for _ in range(5):
        journal.write(JournalEvent.RESTART_SCHEDULED)
    expected = 5
    assert read_history(run).restarts == expected
    index = run.journal_index_file
    content = json.loads(index.read_bytes())
    match damage:
        case "deleted":
            index.unlink()
        case "cut":
            index.write_bytes(index.read_bytes()[:50])
        case "binary":
            index.write_bytes(b"\0\xff" * 100)
        case "of another version":
            index.write_text(json.dumps(content | {"format_version": 99}))
        case "changed":
            content["history"]["restarts"] = 7
            index.write_text(json.dumps(content))
        case "journal cut":
            lines = journal.path.read_bytes().splitlines(keepends=True)
            journal.path.write_bytes(b"".join(lines[:2]))
            expected = 2
        case "journal replaced":
            size = journal.path.stat().st_size
            journal.path.unlink()
            while not journal.path.exists() or journal.path.stat().st_size < size:
                journal.write(JournalEvent.RUN_STARTED)
            expected = 0
    assert read_history(run).restarts == expected


def test_only_what_follows_the_index_is_read(run: RunDir) -> None:
    """Bytes in the middle of what the index covers are not read again."""
    journal = Journal(run.journal_file)
    journal.listeners.append(HistoryIndexer(run).on_event)
    for _ in range(5000):
        journal.write(JournalEvent.RESTART_SCHEDULED)
    with journal.path.open("r+b") as file:
        file.seek(journal.path.stat().st_size // 2)
        file.write(b"\0" * 1000)
    history = read_history(run)
    assert (history.restarts, history.damaged) == (5000, 0)


@pytest.mark.usefixtures("indexed_often")
def test_reading_goes_on_where_a_deadline_has_ended_it(run: RunDir) -> None:
    """A journal that takes too long is refused, and the next command reads less of it."""
    journal = Journal(run.journal_file)
    for _ in range(3):
        journal.write(JournalEvent.RESTART_SCHEDULED)
    with journal.path.open("a") as file:
        file.write('{"torn')
    for _ in range(3):
        with pytest.raises(ConfigError, match=r"cannot read .* in time: [0-9]+ bytes are left"):
            read_history(run, deadline=0.0)
    assert read_history(run, deadline=0.0).restarts == 3
    assert read_history(run).restarts == 3


def test_size_of_the_history_does_not_grow_with_the_journal(run: RunDir) -> None:
    """Ten times as many saves, deletions and restarts take the same room."""

    def size_after(cycles: int) -> int:
        events = []
        for cycle in range(1000, 1000 + cycles):
            path = f"checkpoints/step-{cycle:012d}"
            events += [
                {"event": "attempt_started", "attempt": 1000},
                {"event": "checkpoint_published", "path": path, "step": cycle, "seconds": 0.5},
                {"event": "checkpoint_deleted", "path": path},
                {"event": "attempt_exited", "kind": "killed", "step": cycle},
                {"event": "restart_scheduled"},
            ]
        return len(repr(history_of(events)))

    assert size_after(5000) < 1.1 * size_after(500)


def test_history_of_endless_failures_is_bounded() -> None:
    """A run that failed a hundred thousand times at one step has a history of limited size."""
    failure = {"event": "attempt_exited", "kind": "exception", "step": 9, "fingerprint": "f"}
    published = {"event": "checkpoint_published", "path": "step-000000000007", "step": 7}
    history = history_of([published, *[{"event": "attempt_started"}, failure] * 100_000])
    assert len(history.since_progress) <= 4100
    budget = FailureBudget.from_journal(5, history.since_progress)
    assert budget.spent > 5
    assert budget.furthest.step == 7
    assert history.times_ended_like(failure) == 100_000


def test_history_of_a_hostile_journal_is_bounded(run: RunDir) -> None:
    """What another program puts into events, in a small space or a large one, is not kept."""
    much = json.dumps(
        {"stack": [[]] * 20_000, "problem": "x" * 50_000, "fingerprint": "y" * 50_000}
    )
    with run.journal_file.open("w") as file:
        for number in range(40):
            for name in ("attempt_started", "checkpoint_quarantined", "gave_up", "attempt_exited"):
                file.write(f'{{"event": "{name}", "demoted": [[]], "step": {number}, {much[1:]}\n')
        file.write(f'{{"event": "restart_scheduled", "x": [{"[]," * MAXIMUM_EVENT_BYTES}[]]}}\n')
    history = read_history(run)
    assert (history.restarts, history.damaged) == (0, 1)
    assert history.since_progress[-1]["step"] == 39
    assert len(json.dumps([history.since_progress, history.ends])) < 200_000


def test_names_of_published_checkpoints_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many names the newest are kept."""
    monkeypatch.setattr("orchestrator.rundir.history.MOST_PUBLISHED", 10)
    published = {"event": "checkpoint_published", "seconds": 1.0}
    names = [f"step-{number:012d}" for number in range(1000)]
    history = history_of([published | {"path": f"run/{name}"} for name in names])
    assert 10 <= len(history.published) <= 20
    assert list(history.published) == names[-len(history.published) :]


def test_read_only_directory_costs_only_time(run: RunDir) -> None:
    """A history is read also where no index can be written."""
    journal = Journal(run.journal_file)
    for _ in range(1000):
        journal.write(JournalEvent.RESTART_SCHEDULED)
    run.journal_index_file.mkdir()
    assert read_history(run).restarts == 1000


@pytest.mark.usefixtures("indexed_often")
@pytest.mark.parametrize(
    "changes",
    [
        {"last_mark": {"event": "run_stopped", "status": "75"}},
        {"last_save": []},
        {"last_exit": {"event": "attempt_exited", "last_lines": 7}},
        {"since_progress": [{"event": "unknown"}]},
        {"since_progress": [7]},
        {"save_seconds": [1e999]},
        {"save_seconds": None},
        {"furthest": [1]},
        {"published": ["step-000000000007"]},
        {"ends": {"way": "often"}},
        {"ends": []},
        {"furthest": 7},
        {"since_progress": None},
        {"attempt": "7"},
        {"attempts_since_give_up": "7"},
        {"begun": 7},
        {"damaged": None},
        {"unknown": 1},
    ],
)
def test_index_with_wrong_types_is_not_used(run: RunDir, changes: dict[str, Any]) -> None:
    """An index that another program wrote, digest included, is used only with the right types."""
    journal = Journal(run.journal_file)
    for _ in range(5):
        journal.write(JournalEvent.RESTART_SCHEDULED)
    assert read_history(run).restarts == 5
    content = json.loads(run.journal_index_file.read_bytes())
    content["history"] |= {"restarts": 7} | changes
    with open(run.journal_file, "rb") as file:
        content["check"] = history_index._check(file, content["offset"], content["history"])
    run.journal_index_file.write_text(json.dumps(content))
    assert read_history(run).restarts == 5
    # A journal that goes on from such a history does not take it over either.
    digest = digest_of(content["history"]).hexdigest()
    event = {"event": "journal_rotated", "history": content["history"], "check": digest}
    run.journal_file.write_text(json.dumps(event) + "\n")
    history = read_history(run)
    assert (history.restarts, history.damaged) == (0, 1)


def test_line_that_is_too_long_is_damaged(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line without end is read in pieces, and the events around it count."""
    monkeypatch.setattr(history_index, "MAXIMUM_LINE_BYTES", 200)
    journal = Journal(run.journal_file)
    journal.write(JournalEvent.RESTART_SCHEDULED)
    with journal.path.open("ab") as file:
        file.write(b"[" * 500 + b"\n")
    journal.write(JournalEvent.RESTART_SCHEDULED)
    history = read_history(run)
    assert (history.restarts, history.damaged) == (2, 3)


def test_link_in_place_of_the_index_is_not_followed(run: RunDir, tmp_path: Path) -> None:
    """The file that a link in the place of the index leads to is neither used nor changed."""
    journal = Journal(run.journal_file)
    for _ in range(1000):
        journal.write(JournalEvent.RESTART_SCHEDULED)
    other = tmp_path / "other"
    other.write_text("{}")
    run.journal_index_file.symlink_to(other)
    assert read_history(run).restarts == 1000
    assert other.read_text() == "{}"


@pytest.mark.parametrize("has_index", [True, False])
def test_history_survives_rotations_of_the_journal(run: RunDir, has_index: bool) -> None:
    """A journal that is continued in new files tells the same history, also without an index."""
    chance = random.Random(1)
    journal = Journal(run.journal_file)
    for _ in range(3):
        for event in random_events(chance, 100):
            facts = {key: event[key] for key in event.keys() - {"event"}}
            journal.write(JournalEvent(event["event"]), **facts)
        expected = read_history(run)
        rotate_journal(run, 1000)
        if not has_index:
            run.journal_index_file.unlink(missing_ok=True)
        assert read_history(run) == expected
        (first, *rest), damaged = journal.read()
        assert (first["event"], rest, damaged) == ("journal_rotated", [], 0)
    names = {path.name for path in run.root.glob("journal.*.jsonl")}
    assert names == {"journal.1.jsonl", "journal.2.jsonl", "journal.3.jsonl"}


def test_short_journal_is_not_rotated(run: RunDir) -> None:
    """Below the limit, and before the first event, nothing changes."""
    rotate_journal(run, 1000)
    Journal(run.journal_file).write(JournalEvent.RUN_STARTED)
    rotate_journal(run, 1000)
    assert [path.name for path in run.root.glob("journal*")] == ["journal.jsonl"]


def test_damaged_summary_of_earlier_journals_is_noticed(run: RunDir) -> None:
    """What a bit flip made of the carried history is not believed, and is counted as damage."""
    journal = Journal(run.journal_file)
    for _ in range(20):
        journal.write(JournalEvent.RESTART_SCHEDULED)
    rotate_journal(run, 1000)
    content = journal.path.read_bytes()
    journal.path.write_bytes(content.replace(b'"restarts": 20', b'"restarts": 28'))
    history = read_history(run)
    assert (history.restarts, history.damaged) == (0, 1)


@pytest.mark.parametrize("depth", [300, 900, 5000, 20_000])
def test_event_that_is_nested_deeply_ends_no_reader(run: RunDir, depth: int) -> None:
    """An event that is parsed and cannot be copied keeps only the index from being written."""
    nested = "[" * depth + "]" * depth
    journal = Journal(run.journal_file)
    for name in ("run_stopped", "attempt_exited", "journal_rotated"):
        with journal.path.open("a") as file:
            file.write(f'{{"event": "{name}", "history": {nested}, "check": ""}}\n')
        for _ in range(1000):
            journal.write(JournalEvent.RESTART_SCHEDULED)
        read_history(run)
        rotate_journal(run, 1000)
        read_history(run)


@pytest.mark.parametrize(
    ("events", "interrupted"),
    [
        ((), False),
        (("run_started", "attempt_started"), True),
        (("run_started", "attempt_started", "restart_scheduled"), True),
        (("run_started", "attempt_started", "run_stopped"), False),
        (("run_started", "attempt_started", "gave_up"), False),
        (("run_started", "attempt_started", "run_stopped", "run_started"), False),
    ],
)
def test_run_is_interrupted_if_its_last_attempt_has_no_end(
    events: tuple[str, ...], interrupted: bool
) -> None:
    """Only a supervisor that died with an attempt leaves none; a bare script starts no attempt."""
    history = history_of([{"event": name, "attempt": 1} for name in events])
    assert history.was_interrupted is interrupted
