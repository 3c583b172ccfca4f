"""`orchestrator runs`: every run below a directory, one line each."""

import json
import os
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import client
from orchestrator.checkpoint.store import Store
from orchestrator.cli.parser import parse
from orchestrator.cli.runs import SORT_KEYS, statuses
from orchestrator.cli.runs_table import runs_table
from orchestrator.errors import ConfigError
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.lock import RunLock
from orchestrator.rundir.paths import RunDir
from orchestrator.telemetry.progress import Progress
from orchestrator.telemetry.status import Status
from tests.checkpoint.support import publish
from tests.cli.support import shown
from tests.support import NOBODY


def make_run(root: Path, steps: Iterable[int] = (), **changes: Any) -> RunDir:
    """Make a run with a checkpoint of each of ``steps``, with ``changes`` in the manifests."""
    run = RunDir(root)
    run.create()
    store = Store.open(run, command=["python", "train.py"])
    for step in steps:
        publish(store, step, run_id=store.run_id, **changes)
    return run


def make_runs(parent: Path) -> None:
    """Make a new run, a stopped one and a failed one, at three depths."""
    make_run(parent / "fresh")
    stopped = make_run(parent / "sweep" / "stopped", [5, 7], time="2026-01-01T00:00:00+00:00")
    failed = make_run(parent / "sweep" / "more" / "failed", [3], time="2026-01-02T00:00:00+00:00")
    for run, end in ((stopped, JournalEvent.RUN_STOPPED), (failed, JournalEvent.GAVE_UP)):
        journal = Journal(run.journal_file)
        journal.write(JournalEvent.RUN_STARTED)
        journal.write(JournalEvent.ATTEMPT_STARTED, 1)
        if end == JournalEvent.GAVE_UP:
            journal.write(JournalEvent.RESTART_SCHEDULED, 1)
        journal.write(end, status=70)


def names(found: list[dict[str, Any]]) -> list[str]:
    return [Path(status["run_dir"]).name for status in found]


def shown_runs(found: list[dict[str, Any]], parent: Path) -> str:
    return shown(runs_table(found, parent), columns=60)


def test_runs_at_every_depth_are_listed_with_what_status_says(tmp_path: Path) -> None:
    """Each run below the directory is listed, and a run inside a run's directory is not."""
    make_runs(tmp_path)
    make_run(tmp_path / "fresh" / "attempts" / "copy")
    (tmp_path / "data").mkdir()
    found = statuses(tmp_path, "run")
    assert names(found) == ["fresh", "failed", "stopped"]
    assert [status["state"] for status in found] == ["new", "failed", "stopped"]
    assert [status["step"] for status in found] == [None, 3, 7]
    lines = shown_runs(found, tmp_path).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["fresh", "new", "none"],
        ["sweep/more/failed", "failed", "3"],
        ["sweep/stopped", "stopped", "7"],
    ]


def test_runs_show_how_far_they_are_and_what_is_left(tmp_path: Path) -> None:
    """Per cent and the time left have columns, which are empty where that is unknown."""
    progress = Progress.of(step=50, epoch=1, total_steps=200, steps_per_second=0.5)
    known = Status("a", "training", str(tmp_path / "a"), step=50, epoch=1, progress=progress)
    unknown = Status("b", "new", str(tmp_path / "b"))
    lines = shown_runs([known.to_json(), unknown.to_json()], tmp_path).splitlines()
    assert " ".join(lines[1].split()) == "a training 50 1 25 % 5 min 0 s none"
    assert lines[2].split() == ["b", "new", "none"]


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("run", ["fresh", "failed", "stopped"]),
        ("state", ["failed", "fresh", "stopped"]),
        ("step", ["stopped", "failed", "fresh"]),
        ("restarts", ["failed", "fresh", "stopped"]),
        ("age", ["failed", "stopped", "fresh"]),
        ("risk", ["fresh", "failed", "stopped"]),
    ],
)
def test_runs_are_sorted(tmp_path: Path, key: str, order: list[str]) -> None:
    """Runs are sorted by the key, those without a value last and by their directories."""
    make_runs(tmp_path)
    assert names(statuses(tmp_path, key)) == order
    assert key in SORT_KEYS


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"run_id": 5}', b"\xff\0"])
def test_run_that_cannot_be_read_is_shown_with_the_reason(tmp_path: Path, content: bytes) -> None:
    """A damaged run is listed beside the others, with its problem, and ends nothing."""
    make_runs(tmp_path)
    (tmp_path / "fresh" / "run.json").write_bytes(content)
    found = statuses(tmp_path, "run")
    assert [status["state"] for status in found] == ["unreadable", "failed", "stopped"]
    assert "run.json" in found[0]["problem"]
    assert "run.json" in shown_runs(found, tmp_path)


EXIT = '{{"event": "attempt_exited", "attempt": 1, "last_lines": {}}}'
GAVE_UP = '{"event": "gave_up", "attempt": 1, "cause": "c"}'


@pytest.mark.parametrize("parts", ['[{"a": 1}]', "[" * 700 + "]" * 700, "[1" + "0" * 4300 + "]"])
def test_journal_of_a_stranger_hides_no_other_run(tmp_path: Path, parts: str) -> None:
    """An event with other parts than texts, very deep or endless, counts as damaged."""
    make_runs(tmp_path)
    lines = [EXIT.format(parts), GAVE_UP]
    RunDir(tmp_path / "fresh").journal_file.write_text("\n".join(lines) + "\n")
    found = statuses(tmp_path, "run")
    assert [status["state"] for status in found] == ["failed", "failed", "stopped"]
    assert found[0]["failure"]["cause"] == "c"
    assert found[0]["failure"]["last_line"] is None
    json.dumps(found)


def test_defect_in_reading_one_run_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever reading a run raises is told in its line."""
    make_runs(tmp_path)

    def status_of(run: RunDir, **limits: Any) -> dict[str, Any]:
        if run.root.name == "fresh":
            raise RecursionError("too deep")
        return client.status_of(run, **limits)

    monkeypatch.setattr("orchestrator.cli.runs.status_of", status_of)
    found = statuses(tmp_path, "run")
    assert [status["state"] for status in found] == ["unreadable", "failed", "stopped"]
    assert "RecursionError('too deep')" in found[0]["problem"]


def test_no_run_is_read_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal of a gigabyte says that it was not read, and what to do."""
    make_runs(tmp_path)
    monkeypatch.setattr("orchestrator.cli.runs.MOST_SECONDS_OF_READING", 0.0)
    found = statuses(tmp_path / "sweep" / "stopped", "run")
    assert found[0]["state"] == "unreadable"
    assert "`orchestrator status " in found[0]["problem"]
    journal = RunDir(tmp_path / "sweep" / "stopped").journal_file
    journal.unlink()
    found = statuses(tmp_path / "sweep" / "stopped", "run")
    assert "move the newer checkpoints away" in found[0]["problem"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A link that leads back up, or to another place, adds no run."""
    make_runs(tmp_path / "runs")
    make_run(tmp_path / "elsewhere")
    (tmp_path / "runs" / "up").symlink_to(tmp_path)
    (tmp_path / "runs" / "other").symlink_to(tmp_path / "elsewhere")
    assert len(statuses(tmp_path / "runs", "run")) == 3


def test_run_that_another_process_holds_is_running(tmp_path: Path) -> None:
    """A run that a script without a supervisor holds is shown as running."""
    lock = RunLock(make_run(tmp_path / "held", [1]))
    lock.write_owner()
    try:
        assert [status["state"] for status in statuses(tmp_path, "run")] == ["running"]
    finally:
        lock.close()


def test_many_supervisors_that_do_not_answer_delay_the_list_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while no supervisor is asked, and the runs are shown as they are on disk."""
    monkeypatch.setattr("orchestrator.cli.runs.MOST_SECONDS_OF_ASKING", 0.0)
    lock = RunLock(make_run(tmp_path / "held", [1]))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "silent"))
        listener.listen()
        listener.setblocking(False)
        lock.write_owner(socket=str(tmp_path / "silent"))
        found = statuses(tmp_path, "run")
        with pytest.raises(BlockingIOError):
            listener.accept()
    lock.close()
    assert [(status["state"], status["step"]) for status in found] == [("running", 1)]


@pytest.mark.usefixtures("as_root")
def test_directory_that_may_not_be_read_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directories that are closed to this user are left out, and nothing else is."""
    make_runs(tmp_path)
    tmp_path.chmod(0o755)
    for number in range(20):  # a directory has no order: some come before the runs
        (tmp_path / f"closed-{number}").mkdir(mode=0o700)
    monkeypatch.chdir(tmp_path)
    os.seteuid(NOBODY)
    try:
        found = statuses(Path(), "run")
    finally:
        os.seteuid(0)
    assert names(found) == ["fresh", "failed", "stopped"]


def test_names_and_metrics_do_nothing_to_the_terminal(tmp_path: Path) -> None:
    """Escape sequences in names and problems are shown as text, on one line each."""
    make_run(tmp_path / "a\x1b[31m\nb", [1])
    text = shown_runs(statuses(tmp_path, "run"), tmp_path)
    assert "\x1b" not in text
    assert len(text.splitlines()) == 2


def test_name_that_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    """Where standard output has no code for a character, it is shown as an escape."""
    make_run(tmp_path / "é\u4e00")
    for words in (["runs", "."], ["status", "é\u4e00"]):
        result = subprocess.run(
            [sys.executable, "-m", "orchestrator", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONIOENCODING": "latin-1"},
            stdout=subprocess.PIPE,
            timeout=60,
            check=True,
        )
        assert "é\\u4e00" in result.stdout.decode("latin-1")


def test_directory_itself_may_be_the_run(tmp_path: Path) -> None:
    """The directory of a run lists this run, by its whole path."""
    make_run(tmp_path / "one", [1])
    assert str(tmp_path / "one") in shown_runs(statuses(tmp_path / "one", "run"), tmp_path / "one")


def run_command(*words: str) -> None:
    arguments: Namespace = parse(["runs", *words])
    arguments.run_command(arguments)


def test_command_prints_a_table_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a directory the command lists runs/; --json has the objects of `status --json`."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="there is no directory runs"):
        run_command()
    Path("runs").mkdir()
    run_command()
    assert capsys.readouterr().out == "no runs below runs\n"
    make_runs(Path("runs"))
    run_command()
    assert len(capsys.readouterr().out.splitlines()) == 4
    run_command("--json", "--sort", "step")
    assert [status["step"] for status in json.loads(capsys.readouterr().out)] == [7, 3, None]
    assert RunDir(Path("runs/fresh")).run_file.exists()
