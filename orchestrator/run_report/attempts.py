"""The attempts of a run, one row each, from the events of its journal."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from orchestrator.rundir.journal import JournalEvent


@dataclass
class AttemptRow:
    """What is known of one attempt; None where the journal does not tell."""

    number: int | None
    started: str | None = None
    resume_step: int | None = None
    from_memory: bool = False
    kind: str | None = None
    cause: str | None = None
    decision: str | None = None
    reason: str | None = None
    step: int | None = None
    seconds: float | None = None
    lost_seconds: float | None = None


def attempt_rows(events: Iterable[dict[str, Any]]) -> list[AttemptRow]:
    """Return the attempts that these events tell of, the oldest first."""
    rows: list[AttemptRow] = []
    for event in events:
        match event["event"]:
            case JournalEvent.ATTEMPT_STARTED:
                row = AttemptRow(event.get("attempt"), event.get("time"))
                row.resume_step = _count(event.get("resume_step"))
                row.from_memory = event.get("from_memory") is True
                rows.append(row)
            case JournalEvent.ATTEMPT_EXITED:
                if not rows or rows[-1].number != event.get("attempt") or rows[-1].kind:
                    rows.append(AttemptRow(event.get("attempt")))
                _add_end(rows[-1], event)
    return rows


def _add_end(row: AttemptRow, event: dict[str, Any]) -> None:
    for name in ("kind", "cause", "decision", "reason"):
        if isinstance(event.get(name), str):
            setattr(row, name, event[name])
    row.step = _count(event.get("step"))
    row.seconds, row.lost_seconds = map(_seconds, (event.get("seconds"), event.get("lost_seconds")))


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _seconds(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value < 1e12 else None
