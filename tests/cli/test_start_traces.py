"""What is removed of a run directory in which nothing ran, and what stays."""

from pathlib import Path

import pytest

from orchestrator.cli.start_traces import StartTraces
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import RunDir
from orchestrator.supervisor.recovery.failure_kinds import Kind


def begin(run: RunDir) -> StartTraces:
    """Make a run directory, as a start does."""
    traces = StartTraces(run)
    run.create()
    for file in (run.run_file, run.lock_file, run.log_file):
        file.touch()
    return traces


def end_attempt(run: RunDir, kind: Kind) -> None:
    """Record an attempt with its output, as a supervisor does."""
    for rank in (0, 1):
        run.attempt(1).rank(rank).root.mkdir()
        run.attempt(1).rank(rank).output_file.write_text("said")
    journal = Journal(run.journal_file)
    journal.write(JournalEvent.ATTEMPT_STARTED, 1)
    journal.write(JournalEvent.ATTEMPT_EXITED, 1, kind=kind)


@pytest.mark.parametrize("kind", [None, Kind.NEVER_STARTED])
def test_directories_that_the_start_made_are_removed(tmp_path: Path, kind: Kind | None) -> None:
    """Nothing is left without an attempt, or after one that never started."""
    run = RunDir(tmp_path / "a" / "b" / "run")
    traces = begin(run)
    if kind is not None:
        end_attempt(run, kind)
    traces.remove_if_nothing_ran()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [Kind.EXCEPTION, Kind.KILLED, Kind.COMPLETE])
def test_records_of_an_attempt_stay(tmp_path: Path, kind: Kind) -> None:
    """An attempt that ran keeps all of its records."""
    run = RunDir(tmp_path / "run")
    traces = begin(run)
    end_attempt(run, kind)
    before = {*tmp_path.rglob("*")}
    traces.remove_if_nothing_ran()
    assert {*tmp_path.rglob("*")} == before


def test_attempt_without_an_end_stays(tmp_path: Path) -> None:
    """Where the supervisor was killed, or the journal lacks events, nothing is removed."""
    killed, full_disk = RunDir(tmp_path / "killed"), RunDir(tmp_path / "full")
    traces = [begin(killed), begin(full_disk)]
    Journal(killed.journal_file).write(JournalEvent.ATTEMPT_STARTED, 1)
    full_disk.attempt(1).root.mkdir()
    full_disk.attempt(1).output_file.write_text("said")
    for each in traces:
        each.remove_if_nothing_ran()
    assert killed.lock_file.exists()
    assert full_disk.attempt(1).output_file.exists()


def test_what_others_made_stays(tmp_path: Path) -> None:
    """A directory that was there stays, and so does a run, and what a script has made in one."""
    run = RunDir(tmp_path)
    traces = begin(run)
    (tmp_path / "mine").touch()
    traces.remove_if_nothing_ran()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    begin(run).remove_if_nothing_ran()
    assert run.run_file.exists()
    begin(run).remove_if_nothing_ran()
    assert run.run_file.exists()


def test_directory_behind_a_link_stays(tmp_path: Path) -> None:
    """Nothing is removed through a link that somebody has put in the place of a directory."""
    run = RunDir(tmp_path / "run")
    traces = begin(run)
    end_attempt(run, Kind.NEVER_STARTED)
    run.attempts.rename(tmp_path / "elsewhere")
    run.attempts.symlink_to(tmp_path / "elsewhere")
    traces.remove_if_nothing_ran()
    assert (tmp_path / "elsewhere" / "0001" / "output.log").exists()


@pytest.mark.parametrize("left", ["done.json", "metrics.jsonl", "checkpoints/step-000000000001"])
def test_what_a_script_has_left_stays_without_a_journal(tmp_path: Path, left: str) -> None:
    """On a full disk the journal lacks all events; a silent script has run all the same."""
    run = RunDir(tmp_path / "run")
    traces = begin(run)
    (run.root / left).touch()
    before = {*tmp_path.rglob("*")}
    traces.remove_if_nothing_ran()
    assert {*tmp_path.rglob("*")} == before


def test_damaged_journal_removes_nothing(tmp_path: Path) -> None:
    """A line that cannot be read may be of an attempt that ran."""
    run = RunDir(tmp_path / "run")
    traces = begin(run)
    run.journal_file.write_text("{\n")
    traces.remove_if_nothing_ran()
    assert run.lock_file.exists()
