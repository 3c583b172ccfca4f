"""The user's command on done, gave up and hang (--on-event): beside the training, for a while."""

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from orchestrator.ipc.messages import ATTEMPT_VARIABLE, RUN_DIR_VARIABLE
from orchestrator.rundir.journal import JournalEvent
from orchestrator.rundir.paths import RunDir
from orchestrator.system.subprocesses import SubprocessRunner

DEADLINE_SECONDS = 30.0
SHOWN_CHARACTERS = 2000

EVENT_VARIABLE = "ORCHESTRATOR_EVENT"
REASON_VARIABLE = "ORCHESTRATOR_EVENT_REASON"
STEP_VARIABLE = "ORCHESTRATOR_EVENT_STEP"

NAMES = {
    JournalEvent.RUN_COMPLETED: "done",
    JournalEvent.GAVE_UP: "gave_up",
    JournalEvent.HANG_DETECTED: "hang",
}


class EventHook:
    """Hears what the journal is told, and runs the command for some of it."""

    def __init__(self, command: str | None, run: RunDir, tools: SubprocessRunner) -> None:
        self._command = command
        self._run = run
        self._tools = tools
        self._running: set[asyncio.Task[None]] = set()

    def hear(self, record: Mapping[str, Any]) -> None:
        """Start the command if it is for this event; never fails."""
        if self._command is not None and record["event"] in NAMES:
            task = asyncio.ensure_future(self._tell(self._command, record))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _tell(self, command: str, record: Mapping[str, Any]) -> None:
        variables = self._variables(record)
        answer = await self._tools.run(("sh", "-c", command), DEADLINE_SECONDS, variables)
        log = structlog.get_logger()
        if answer.status is None:
            log.warning(f"the --on-event command failed: {answer.problem}")
        elif answer.status != 0:
            printed = f"{answer.output}{answer.problem}".strip()[-SHOWN_CHARACTERS:]
            log.warning(f"the --on-event command failed: status {answer.status}", printed=printed)

    def _variables(self, record: Mapping[str, Any]) -> dict[str, str]:
        reasons = (record.get(name) for name in ("cause", "seems", "reason"))
        return {
            EVENT_VARIABLE: NAMES[record["event"]],
            REASON_VARIABLE: "; ".join(str(reason) for reason in reasons if reason),
            STEP_VARIABLE: _text(record.get("step")),
            ATTEMPT_VARIABLE: _text(record["attempt"]),
            RUN_DIR_VARIABLE: str(self._run.root.absolute()),
        }

    async def finish(self, abandon: asyncio.Event) -> None:
        """Wait for what runs, at most until its deadline and until ``abandon`` is set."""
        given_up = asyncio.ensure_future(abandon.wait())
        ends = asyncio.gather(*self._running, return_exceptions=True)
        either: set[asyncio.Future[Any]] = {ends, given_up}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        given_up.cancel()
        ends.cancel()  # and what it waits for, which is killed
        await asyncio.wait({ends})


def _text(value: object) -> str:
    return "" if value is None else str(value)
