"""What is removed of a run directory in which nothing ran, and what stays."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.checkpoint.store import Store
from orchestrator.cli import detach
from orchestrator.cli.parser import parse
from orchestrator.cli.run import run as run_command
from orchestrator.cli.start_traces import StartTraces
from orchestrator.errors import RunInUseError
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.lock import RunLock
from orchestrator.rundir.paths import RunDir
from orchestrator.supervisor.recovery.failure_kinds import Kind
from tests.support import in_child


def begin(run: RunDir) -> tuple[StartTraces, RunLock]:
    """Make a run directory, as a start does."""
    traces = StartTraces(run)
    run.create()
    lock = RunLock(run)
    for file in (run.run_file, run.log_file):
        file.touch()
    return traces, lock


def end(start: tuple[StartTraces, RunLock]) -> None:
    """End a start, and the process that has made it."""
    traces, lock = start
    traces.remove_if_nothing_ran(lock)
    lock.close()


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
    start = begin(run)
    if kind is not None:
        end_attempt(run, kind)
    end(start)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [Kind.EXCEPTION, Kind.KILLED, Kind.COMPLETE])
def test_records_of_an_attempt_stay(tmp_path: Path, kind: Kind) -> None:
    """An attempt that ran keeps all of its records."""
    run = RunDir(tmp_path / "run")
    start = begin(run)
    end_attempt(run, kind)
    before = {*tmp_path.rglob("*")}
    end(start)
    assert {*tmp_path.rglob("*")} == before


def test_attempt_without_an_end_stays(tmp_path: Path) -> None:
    """Where the supervisor was killed, or the journal lacks events, nothing is removed."""
    killed, full_disk = RunDir(tmp_path / "killed"), RunDir(tmp_path / "full")
    starts = [begin(killed), begin(full_disk)]
    Journal(killed.journal_file).write(JournalEvent.ATTEMPT_STARTED, 1)
    full_disk.attempt(1).root.mkdir()
    full_disk.attempt(1).output_file.write_text("said")
    for each in starts:
        end(each)
    assert killed.lock_file.exists()
    assert full_disk.attempt(1).output_file.exists()


def test_what_others_made_stays(tmp_path: Path) -> None:
    """A directory that was there stays, and so does a run, and what a script has made in one."""
    run = RunDir(tmp_path)
    start = begin(run)
    (tmp_path / "mine").touch()
    end(start)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    end(begin(run))
    assert run.run_file.exists()
    end(begin(run))
    assert run.run_file.exists()


def test_directory_behind_a_link_stays(tmp_path: Path) -> None:
    """Nothing is removed through a link that somebody has put in the place of a directory."""
    run = RunDir(tmp_path / "run")
    start = begin(run)
    end_attempt(run, Kind.NEVER_STARTED)
    run.attempts.rename(tmp_path / "elsewhere")
    run.attempts.symlink_to(tmp_path / "elsewhere")
    end(start)
    assert (tmp_path / "elsewhere" / "0001" / "output.log").exists()


@pytest.mark.parametrize("left", ["done.json", "metrics.jsonl", "checkpoints/step-000000000001"])
def test_what_a_script_has_left_stays_without_a_journal(tmp_path: Path, left: str) -> None:
    """On a full disk the journal lacks all events; a silent script has run all the same."""
    run = RunDir(tmp_path / "run")
    start = begin(run)
    (run.root / left).touch()
    before = {*tmp_path.rglob("*")}
    end(start)
    assert {*tmp_path.rglob("*")} == before


def test_damaged_journal_removes_nothing(tmp_path: Path) -> None:
    """A line that cannot be read may be of an attempt that ran."""
    run = RunDir(tmp_path / "run")
    start = begin(run)
    run.journal_file.write_text("{\n")
    end(start)
    assert run.lock_file.exists()


@pytest.mark.parametrize("has_begun", [True, False])
def test_refused_start_removes_nothing_of_another(tmp_path: Path, has_begun: bool) -> None:
    """Of two starts at the same moment the refused one leaves the directory to the other one.

    Before that one has the lock, the two have made directories only.
    """
    run = RunDir(tmp_path / "runs" / "run")
    refused = StartTraces(run)
    run.create()
    if has_begun:
        _, lock = begin(run)
        with pytest.raises(RunInUseError):
            RunLock(run)
    before = {*tmp_path.rglob("*")}
    refused.remove_if_nothing_ran(None)
    assert {*tmp_path.rglob("*")} == (before if has_begun else set())
    if has_begun:
        lock.close()


@pytest.mark.processes
def test_refused_background_start_removes_nothing_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher removes what its supervisor has made, but not while another start has the lock."""
    run = RunDir(tmp_path / "run")
    locks = []

    def spawn(run: RunDir, _: Sequence[str]) -> "subprocess.Popen[bytes]":
        locks.append(RunLock(run))
        Store.open(run, command=[])
        run.log_file.touch()
        return subprocess.Popen(["sh", "-c", "exit 69"])

    monkeypatch.setattr(detach, "_spawn", spawn)
    assert detach.start(run, []) == 69
    assert {path.name for path in run.root.iterdir()} >= {"lock", "run.json", "supervisor.log"}
    locks[0].close()


@pytest.mark.processes
def test_command_that_comes_second_leaves_the_run_to_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another start gets the lock after this one has seen that there is no run."""
    run = RunDir(tmp_path / "run")

    class OvertakenTraces(StartTraces):
        def __init__(self, run: RunDir) -> None:
            super().__init__(run)
            run.create()
            self.lock = RunLock(run)
            Store.open(run, command=[])

    def start() -> None:
        monkeypatch.setattr("orchestrator.cli.run.StartTraces", OvertakenTraces)
        words = ["run", "--no-spare", "--run-dir", str(run.root), "--", "true"]
        with pytest.raises(RunInUseError):
            run_command(parse(words))

    assert in_child(start) == 0
    assert {path.name for path in run.root.iterdir()} >= {"attempts", "lock", "run.json"}
