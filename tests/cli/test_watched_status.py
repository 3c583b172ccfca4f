"""What `status --watch` shows."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli.watched_status import watched_status
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import RunDir
from orchestrator.telemetry.status import Status


def text_of(run: RunDir, columns: int, encoding: str = "utf-8") -> str:
    output = io.BytesIO()
    file = io.TextIOWrapper(output, encoding=encoding, errors="backslashreplace")
    console = Console(file=file, width=columns, color_system=None)
    console.print(watched_status(run, Status("abc", "training", "run").to_json()))
    file.flush()
    return output.getvalue().decode(encoding)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path)
    lines = [{"step": step, "metrics": {"loss": 3 - step}} for step in range(3)]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    Journal(run.journal_file).write(
        JournalEvent.ATTEMPT_EXITED, step=7, cause="killed\x1b[2J\nby all", kind="signal"
    )
    return run


@pytest.mark.parametrize("columns", [20, 60, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_curve_and_events_fit_the_terminal(run: RunDir, columns: int, encoding: str) -> None:
    """No line is wider than the terminal, whose encoding may have no Braille."""
    lines = [line.rstrip() for line in text_of(run, columns, encoding).splitlines()]
    assert max(map(len, lines)) <= columns
    top = lines.index("loss") + 1
    assert lines[top].startswith("3 ")
    assert lines[top + 5].startswith("1 ")
    assert ("*" in lines[top]) == (encoding == "ascii")
    assert lines[top + 6].split() == ["step", "0", "2"]


@pytest.mark.parametrize(
    ("lines", "has_chart", "events"), [(40, True, 6), (24, True, 6), (10, False, 6), (7, False, 3)]
)
def test_newest_events_are_shown_on_a_low_terminal(
    run: RunDir, lines: int, has_chart: bool, events: int
) -> None:
    """The curve gives way to the events, the older events to the newer, and none is cut off."""
    journal = Journal(run.journal_file)
    for step in range(10, 20):
        journal.write(JournalEvent.RESUMED, step=step)
    console = Console(width=80, height=lines, color_system=None, force_terminal=True)
    with console.capture() as capture:
        console.print(watched_status(run, Status("abc", "training", "run").to_json()))
    shown = capture.get().splitlines()
    assert len(shown) <= lines
    steps = [int(line.split()[-1]) for line in shown if "resumed" in line]
    assert steps == [*range(20 - events, 20)]
    assert any(line.startswith("loss") for line in shown) == has_chart


def test_events_are_harmless(run: RunDir) -> None:
    """What a trainer wrote into an event is shown on one line, without what a terminal obeys."""
    last = text_of(run, 200).splitlines()[-1].rstrip()
    assert last.endswith("  attempt exited  step 7, cause killed\\x1b[2J\\nby all")


def test_run_without_metrics_has_no_curve(tmp_path: Path) -> None:
    """Only the status is shown where nothing else is known."""
    assert len(text_of(RunDir(tmp_path), 80).splitlines()) == 3
