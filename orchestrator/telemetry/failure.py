"""Why a run gave up, as its journal tells it."""

from dataclasses import dataclass
from typing import Any

from orchestrator.rundir.journal import JournalEvent
from orchestrator.rundir.paths import RunDir


@dataclass(frozen=True)
class Failure:
    """The ``failure`` object of `status --json`. Unknown values are None.

    ``status`` is the exit status of the run. ``cause`` says what ended the last attempt, ``kind``
    is its diagnosis (docs/explanation/restarts.md), and ``reason`` says why no restart followed.
    ``times`` counts the attempts that ended like this at this step. ``output`` is the file with
    everything that the attempt printed, and ``last_line`` is its last line.
    """

    status: int | None
    cause: str | None
    reason: str | None
    kind: str | None = None
    attempt: int | None = None
    step: int | None = None
    times: int | None = None
    output: str | None = None
    last_line: str | None = None


def failure_in(events: list[dict[str, Any]], run: RunDir) -> Failure | None:
    """Return the failure that the last ``gave_up`` event of a journal tells of, if there is one."""
    gave_up = _last(events, JournalEvent.GAVE_UP)
    if gave_up is None:
        return None
    facts = {name: gave_up.get(name) for name in ("status", "cause", "reason")}
    exits = [event for event in events if event["event"] == JournalEvent.ATTEMPT_EXITED]
    number = gave_up.get("attempt")
    if not isinstance(number, int) or not exits or exits[-1].get("attempt") != number:
        return Failure(**facts)
    last = exits[-1]
    lines = last.get("last_lines") or [None]
    return Failure(
        **facts,
        kind=last.get("kind"),
        attempt=number,
        step=last.get("step"),
        times=sum(_mark(event) == _mark(last) for event in exits),
        output=str(run.attempt(number).output_file),
        last_line=lines[-1],
    )


def _last(events: list[dict[str, Any]], kind: JournalEvent) -> dict[str, Any] | None:
    return next((event for event in reversed(events) if event["event"] == kind), None)


def _mark(event: dict[str, Any]) -> tuple[Any, ...]:
    """Return what two ends have in common that come from one defect."""
    return event.get("kind"), event.get("fingerprint"), event.get("step")
