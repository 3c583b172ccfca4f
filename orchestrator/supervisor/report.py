"""Tells people about the end of an attempt: where it ended, what is saved, what happens now."""

from typing import Any

import structlog

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.exitcodes import ExitStatus
from orchestrator.supervisor.judge import Verdict
from orchestrator.supervisor.recovery.policy import RETRIES
from orchestrator.supervisor.recovery.symptoms import ADVICE, Kind
from orchestrator.system.units import duration_text, size_text

PHASES = {
    "start": "before its session began",
    "restore": "while restoring",
    "train": "while training",
    "evaluate": "while evaluating",
    "save": "while saving",
    "done": "after the training",
}
AGAIN_TO_RESUME = "run the same command again to resume"
FIX_AND_RUN_AGAIN = "fix this and run the command again"
_MEMORY_MATTERS = frozenset(
    {Kind.MEMORY_ERROR, Kind.SHARED_MEMORY_FULL, Kind.OOM_KILLED, Kind.KILLED, Kind.WORKER_KILLED}
)


def log_failure(verdict: Verdict, now: str) -> None:
    """Log a failed attempt; ``now`` says what happens next."""
    record, log = verdict.record, structlog.get_logger()
    log_it = log.warning if verdict.decision.action in RETRIES else log.error
    log_it(
        record["cause"],
        details=paragraph(record, verdict.saved, now, verdict.output),
        kind=record["kind"],
        step=record["step"],
        decision=record["decision"],
        output=verdict.output,
    )


def log_stop(verdict: Verdict, newest: Checkpoint | None) -> None:
    """Log a stop on request: whether everything is saved, and where."""
    log = structlog.get_logger()
    where = str(newest.shown_path) if newest else None
    if verdict.diagnosis.status is not ExitStatus.STOPPED_SAVED:
        lost = {} if verdict.lost_steps is None else {"lost_steps": verdict.lost_steps}
        log.error(
            f"stopped, but {last_steps_are(verdict.lost_steps)} not saved; {AGAIN_TO_RESUME}",
            **lost,
            checkpoint=where,
        )
    elif newest is None:
        log.info("stopped before the first step: there was nothing to save")
    else:
        log.info(f"stopped at step {newest.manifest.step}, saved in {where}; {AGAIN_TO_RESUME}")


def last_steps_are(count: int | None) -> str:
    """Return the subject and the verb of a sentence about lost steps; None if unknown."""
    match count:
        case None:
            return "the last steps are"
        case 1:
            return "the last step is"
    return f"the last {count} steps are"


def paragraph(record: dict[str, Any], saved: str, now: str, output: str) -> list[str]:
    """Return the lines below the cause; ``record`` is exit.json."""
    kind = Kind(record["kind"])
    lines = [_where(record)]
    if kind in _MEMORY_MATTERS:
        lines[0] += f"; {_memory(record)}"
    if advice := ADVICE.get(kind):
        lines.append(advice)
    return [*lines, f"saved: {saved}", f"now: {now}", f"its whole output: {output}"]


def _where(record: dict[str, Any]) -> str:
    if record["loading_step"] is not None:
        return (
            f"attempt {record['attempt']}, while loading the state of step {record['loading_step']}"
        )
    where = f"attempt {record['attempt']}"
    if record["phase"] is not None:
        where += f", {PHASES[record['phase']]}"
    if record["since_safe_point_seconds"] is not None:
        ago = duration_text(record["since_safe_point_seconds"])
        where += f", step {record['step']}, {ago} after its last safe point"
    return where


def _memory(record: dict[str, Any]) -> str:
    held = f"its processes held up to {size_text(record['peak_memory_bytes'])} of memory"
    if limit := record["memory_limit_bytes"]:
        held += f", where {size_text(limit)} are allowed"
    return held


def restart_text(delay_seconds: float, failures: int, allowed: int, restarts: int) -> str:
    """Return when the next attempt begins, and how many failures and restarts there were."""
    when = "at once" if delay_seconds == 0 else f"in {duration_text(delay_seconds)}"
    return (
        f"starting again {when} (restart {restarts}; failures since the last new checkpoint: "
        f"{failures} of at most {allowed}, see --max-restarts)"
    )
