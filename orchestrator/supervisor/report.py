"""Tells people about the end of an attempt: where it ended, what is saved, what happens now."""

from typing import Any

import structlog

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.errors import AGAIN_WITH_NEW_LIMITS
from orchestrator.exitcodes import ExitStatus
from orchestrator.snapshot.slots import Snapshot
from orchestrator.supervisor.judge import Verdict
from orchestrator.supervisor.recovery.failure_kinds import ADVICE, Kind
from orchestrator.supervisor.recovery.policy import RETRIES
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.system.units import duration_text, size_text
from orchestrator.telemetry.stop_text import (
    AGAIN_TO_RESUME,
    HOW_TO_SAVE,
    NO_SESSION,
    Stop,
)

PHASES = {
    "start": "before its session began",
    "restore": "while restoring",
    "train": "while training",
    "evaluate": "while evaluating",
    "save": "while saving",
    "done": "after the training",
}
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


def log_give_up(verdict: Verdict) -> None:
    """Log that the run gives up: after a failure, or at one of its limits."""
    reason = verdict.decision.reason
    if verdict.diagnosis.kind is not Kind.STOPPED:
        log_failure(verdict, f"gave up: {reason}; {FIX_AND_RUN_AGAIN}")
        return
    record = verdict.record
    details = [f"saved: {verdict.saved}", f"now: {AGAIN_WITH_NEW_LIMITS}"]
    structlog.get_logger().error(
        f"gave up: {reason}",
        details=details,
        kind=record["kind"],
        step=record["step"],
        decision=record["decision"],
        output=verdict.output,
    )


def log_completion(verdict: Verdict) -> None:
    """Log that the training is complete, or that a command ended of which nothing is known."""
    record, log = verdict.record, structlog.get_logger()
    facts = {"step": record["step"], "epoch": record["epoch"]}
    if record["connected"]:
        log.info(verdict.diagnosis.cause, **facts)
        return
    details = [NO_SESSION, HOW_TO_SAVE]
    log.warning(verdict.diagnosis.cause, details=details, **facts)


def stop_of(verdict: Verdict, newest: Checkpoint | None, *, begins_anew: bool) -> Stop:
    """Return how a stop during an attempt ended; a script may begin anew at each start."""
    return Stop(
        is_saved=verdict.diagnosis.status is ExitStatus.STOPPED_SAVED,
        step=newest.manifest.step if newest else None,
        path=str(newest.shown_path) if newest else None,
        lost_steps=verdict.lost_steps,
        problem=verdict.problem,
        shows_saves=verdict.record["connected"],
        begins_anew=begins_anew,
    )


def log_stop(stop: Stop) -> None:
    """Log a stop on request: whether everything is saved, and where."""
    sentence, *details = stop.lines
    log = structlog.get_logger()
    if stop.is_saved:
        log.info(sentence, **({"details": details} if details else {}))
        return
    lost = {} if stop.lost_steps is None else {"lost_steps": stop.lost_steps}
    path = None if stop.begins_anew else stop.path
    log.error(sentence, details=details, **lost, checkpoint=path)


def log_stop_between_attempts(
    facts: RunFacts, newest: Checkpoint | None, unsaved: Snapshot | None
) -> None:
    """Log a stop while no trainer ran; ``unsaved`` is a snapshot that no checkpoint holds."""
    if facts.attempt is None:  # the checkpoints have not been looked at yet
        text = f"stopped before the training began; {AGAIN_TO_RESUME}"
        structlog.get_logger().info(text)
        return
    step = newest.manifest.step if newest else None
    log_stop(
        Stop(
            is_saved=unsaved is None,
            step=step,
            path=str(newest.shown_path) if newest else None,
            lost_steps=None if unsaved is None else unsaved.manifest.step - (step or 0),
            problem=facts.problem,
            shows_saves=facts.attempt.shows_saves,
        )
    )


def log_interruption(recorded_step: int | None, start_step: int) -> None:
    """Log that the last supervisor of the run died with its trainer, and what that has cost.

    ``recorded_step`` is the last one of its metrics, ``start_step`` that from which the run goes
    on. Each None or 0 if there is none.
    """
    text = "the last supervisor of this run was killed, or the machine went down"
    lost = None if recorded_step is None else recorded_step - start_step
    log = structlog.get_logger()
    if lost is None:
        newest = f"its newest checkpoint is of step {start_step}"
        if start_step == 0:
            newest = "it has no checkpoint"
        log.warning(f"{text}; {newest}")
    elif lost > 0:
        steps = "1 step is" if lost == 1 else f"{lost} steps are"
        log.warning(f"{text}: at least {steps} lost, and trained again from step {start_step}")
    else:
        log.warning(f"{text}; no step after step {start_step} is known to be lost")


def paragraph(record: dict[str, Any], saved: str, now: str, output: str) -> list[str]:
    """Return the lines below the cause; ``record`` is exit.json."""
    kind = Kind(record["kind"])
    lines = [_where(record), *_others(record)]
    if kind in _MEMORY_MATTERS:
        lines[0] += f"; {_memory(record)}"
    if advice := ADVICE.get(kind):
        lines.append(advice)
    lines += [f"saved: {saved}", f"now: {now}"]
    # Of a command that never started the cause has what there is, and a new run is removed.
    return lines if kind is Kind.NEVER_STARTED else [*lines, f"its whole output: {output}"]


def _others(record: dict[str, Any]) -> list[str]:
    """Return how the other ranks failed, if there are any: what one does ends the others too."""
    failed = [
        f"rank {each['rank']} with {each['error'].splitlines()[0]}"
        for each in record.get("ranks", ())
        if each["error"] and each["rank"] != record["rank"]
    ]
    return [f"then failed: {'; '.join(failed)}"] if failed else []


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
