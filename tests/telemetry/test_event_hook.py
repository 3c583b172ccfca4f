"""The user's command for events, run beside the training."""

import asyncio
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import RunDir
from orchestrator.system.subprocesses import SubprocessRunner
from orchestrator.telemetry.event_hook import COMMAND_TIMEOUT_SECONDS, EventHook

pytestmark = pytest.mark.processes


def run_hook(
    root: Path,
    command: str,
    event: JournalEvent,
    timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
    **facts: object,
) -> list[str]:
    """Write an event to a journal with the hook, and return the messages of the log."""

    async def run() -> None:
        subprocesses = SubprocessRunner()
        hook = EventHook(command, RunDir(root), subprocesses, timeout_seconds)
        journal = Journal(root / "journal.jsonl")
        journal.listeners.append(hook.on_journal_event)
        journal.write(event, 2, **facts)
        await hook.finish(asyncio.Event())
        assert subprocesses.running == set()

    with capture_logs() as logs:
        asyncio.run(run())
    return [f"{log['event']}: {log.get('printed')}" for log in logs]


def test_command_gets_the_event_in_its_environment(tmp_path: Path) -> None:
    """The event, its reason, the step, the attempt and the run directory are variables."""
    command = f'env | grep ^ORCHESTRATOR_ | sort > "{tmp_path}/variables"'
    facts = {"step": 7, "phase": "step", "seems": "process 5 (python) is running"}
    assert run_hook(tmp_path, command, JournalEvent.HANG_DETECTED, **facts) == []
    lines = (tmp_path / "variables").read_text().splitlines()
    assert [line for line in lines if "SPARE" not in line] == [
        "ORCHESTRATOR_ATTEMPT=2",
        "ORCHESTRATOR_EVENT=hang",
        "ORCHESTRATOR_EVENT_REASON=process 5 (python) is running",
        "ORCHESTRATOR_EVENT_STEP=7",
        f"ORCHESTRATOR_RUN_DIR={tmp_path}",
    ]


@pytest.mark.parametrize(
    ("reason", "told"),
    [("a\0b", "a\\x00b"), ("\ud800", "\\ud800"), ("x" * 1_000_000, "x" * 10_000)],
    ids=["NUL", "surrogate", "too long"],
)
def test_command_runs_whatever_the_reason(tmp_path: Path, reason: str, told: str) -> None:
    """A reason that no environment can hold does not keep the command from running."""
    command = f'printf %s "$ORCHESTRATOR_EVENT_REASON" > "{tmp_path}/reason"'
    assert run_hook(tmp_path, command, JournalEvent.GAVE_UP, reason=reason) == []
    assert (tmp_path / "reason").read_text() == told


def test_other_events_do_not_run_the_command(tmp_path: Path) -> None:
    """An event that is not done, gave up or hang does not start the command."""
    run_hook(tmp_path, f"touch {tmp_path}/started", JournalEvent.RUN_STOPPED)
    assert not (tmp_path / "started").exists()


def test_command_that_times_out_is_killed(tmp_path: Path) -> None:
    """A command that takes too long is killed with its children, and a warning is logged."""
    command = f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
    (message,) = run_hook(tmp_path, command, JournalEvent.RUN_COMPLETED, timeout_seconds=0.3)
    assert message == "the --on-event command failed: no answer within 0.3 s: None"
    with pytest.raises(ProcessLookupError):
        while True:  # the init process reaps an orphan in a moment
            os.kill(int((tmp_path / "pid").read_text()), 0)


def test_failing_command_is_logged(tmp_path: Path) -> None:
    """A command that fails is logged with its exit status and its output."""
    (message,) = run_hook(tmp_path, "echo no network; exit 4", JournalEvent.GAVE_UP, reason="a bug")
    assert message == "the --on-event command failed: status 4: no network"
