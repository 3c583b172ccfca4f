"""The user's command for events, beside the training."""

import asyncio
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import RunDir
from orchestrator.system.subprocesses import SubprocessRunner
from orchestrator.telemetry import event_hook
from orchestrator.telemetry.event_hook import EventHook

pytestmark = pytest.mark.processes


def play(root: Path, command: str, event: JournalEvent, **facts: object) -> list[str]:
    """Have the journal told of an event; what the log then says."""

    async def run() -> None:
        tools = SubprocessRunner()
        heard = EventHook(command, RunDir(root), tools)
        journal = Journal(root / "journal.jsonl")
        journal.listeners.append(heard.hear)
        journal.write(event, 2, **facts)
        await heard.finish(asyncio.Event())
        assert tools.running == set()

    with capture_logs() as logs:
        asyncio.run(run())
    return [f"{log['event']}: {log.get('printed')}" for log in logs]


def test_command_is_told_what_happened(tmp_path: Path) -> None:
    """Event, reason, step, attempt and run directory are in its environment."""
    command = f'env | grep ^ORCHESTRATOR_ | sort > "{tmp_path}/told"'
    facts = {"step": 7, "phase": "step", "seems": "process 5 (python) is running"}
    assert play(tmp_path, command, JournalEvent.HANG_DETECTED, **facts) == []
    told = (tmp_path / "told").read_text().splitlines()
    assert [line for line in told if "SPARE" not in line] == [
        "ORCHESTRATOR_ATTEMPT=2",
        "ORCHESTRATOR_EVENT=hang",
        "ORCHESTRATOR_EVENT_REASON=process 5 (python) is running",
        "ORCHESTRATOR_EVENT_STEP=7",
        f"ORCHESTRATOR_RUN_DIR={tmp_path}",
    ]


def test_other_events_start_nothing(tmp_path: Path) -> None:
    """A stop, say, was asked for: nobody has to be told."""
    play(tmp_path, f"touch {tmp_path}/started", JournalEvent.RUN_STOPPED)
    assert not (tmp_path / "started").exists()


def test_command_that_takes_too_long_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it has started, and the log says so."""
    monkeypatch.setattr(event_hook, "DEADLINE_SECONDS", 0.3)
    command = f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
    (said,) = play(tmp_path, command, JournalEvent.RUN_COMPLETED)
    assert said == "the --on-event command failed: no answer within 0.3 s: None"
    with pytest.raises(ProcessLookupError):
        while True:  # an orphan of ours is collected by the init process in a moment
            os.kill(int((tmp_path / "pid").read_text()), 0)


def test_failing_command_is_told_of(tmp_path: Path) -> None:
    """With its status and its last words."""
    (said,) = play(tmp_path, "echo no network; exit 4", JournalEvent.GAVE_UP, reason="a bug")
    assert said == "the --on-event command failed: status 4: no network"
