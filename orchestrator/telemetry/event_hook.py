"""Runs the user's --on-event command for the events that people are told of."""

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from orchestrator.ipc.messages import ATTEMPT_VARIABLE, RUN_DIR_VARIABLE
from orchestrator.rundir.paths import RunDir
from orchestrator.system.races import first_of
from orchestrator.system.subprocesses import SubprocessRunner
from orchestrator.system.text import storable
from orchestrator.telemetry.notable_events import NotableEvents, Notice

COMMAND_TIMEOUT_SECONDS = 30.0
SHOWN_CHARACTERS = 2000
LONGEST_VALUE = 10_000

EVENT_VARIABLE = "ORCHESTRATOR_EVENT"
REASON_VARIABLE = "ORCHESTRATOR_EVENT_REASON"
STEP_VARIABLE = "ORCHESTRATOR_EVENT_STEP"


class EventHook:
    """A journal listener that runs the user's command for some events, beside the training."""

    def __init__(
        self,
        command: str | None,
        run: RunDir,
        subprocesses: SubprocessRunner,
        timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
    ) -> None:
        """Run nothing when ``command`` is None; kill a command after ``timeout_seconds``."""
        self._command = command
        self._run = run
        self._subprocesses = subprocesses
        self._timeout_seconds = timeout_seconds
        self._events = NotableEvents()
        self._running: set[asyncio.Task[None]] = set()

    def on_journal_event(self, record: Mapping[str, Any]) -> None:
        """Start the command if it is wanted for this event; never raises."""
        notice = self._events.notice_of(record)
        if self._command is not None and notice is not None:
            variables = self._variables(notice, record)
            task = asyncio.ensure_future(self._run_command(self._command, variables))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run_command(self, command: str, variables: dict[str, str]) -> None:
        result = await self._subprocesses.run(
            ("sh", "-c", command), self._timeout_seconds, variables
        )
        log = structlog.get_logger()
        if result.status is None:
            log.warning(f"the --on-event command failed: {result.problem}")
        elif result.status != 0:
            printed = f"{result.output}{result.problem}".strip()[-SHOWN_CHARACTERS:]
            log.warning(f"the --on-event command failed: status {result.status}", printed=printed)

    def _variables(self, notice: Notice, record: Mapping[str, Any]) -> dict[str, str]:
        return {
            EVENT_VARIABLE: notice.event,
            REASON_VARIABLE: _text(notice.reason),
            STEP_VARIABLE: _text(record.get("step")),
            ATTEMPT_VARIABLE: _text(record["attempt"]),
            RUN_DIR_VARIABLE: str(self._run.root.absolute()),
        }

    async def finish(self, abandon: asyncio.Event) -> None:
        """Wait for running commands until their timeout, or until ``abandon`` is set."""
        # Cancelling kills the commands that still run.
        await first_of(asyncio.gather(*self._running, return_exceptions=True), abandon.wait())


def _text(value: object) -> str:
    """Return a value as an environment variable can hold it: without NUL, and not too long."""
    return "" if value is None else storable(str(value))[:LONGEST_VALUE]
