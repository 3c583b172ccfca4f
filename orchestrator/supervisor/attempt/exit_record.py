"""The record of an attempt's end: exit.json, and the journal's ``attempt_exited``."""

import contextlib
import time
from typing import Any

from orchestrator.rundir.paths import run_root_above
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.rank import Rank
from orchestrator.system.durable import write_json


def write_exit_record(attempt: Attempt, **conclusions: Any) -> dict[str, Any]:
    """Write exit.json and return its content; ``seconds`` is how long the attempt took."""
    record, file = {**_facts(attempt), **conclusions}, attempt.directory.exit_file
    # The journal gets the same record; a full disk must not end the run.
    with contextlib.suppress(OSError):
        write_json(file, record, below=run_root_above(file))
    return record


def _facts(attempt: Attempt) -> dict[str, Any]:
    loading, final, rank = attempt.loading, attempt.final_snapshot, attempt.cause
    ended = attempt.ended or time.monotonic()
    return {
        "attempt": attempt.number,
        **_ending(rank.returncode),
        "step": attempt.step,
        "epoch": attempt.epoch,
        "phase": None if attempt.adopted else rank.page.phase.name.lower(),
        "reached_safe_point": attempt.reached_safe_point,
        "since_safe_point_seconds": _rounded(attempt.since_safe_point_seconds),
        "connected": attempt.shows_saves,
        "hang": attempt.hang,
        "resumed_step": attempt.resumed_step,
        "loading_step": loading.step if loading else None,
        "loading_epoch": loading.epoch if loading else None,
        "left_step": final.manifest.step if final else None,
        "left_epoch": final.manifest.epoch if final else None,
        "lost_seconds": _rounded(attempt.lost_seconds),
        "peak_memory_bytes": max(rank.process.peak_bytes, rank.memory_watch.peak_bytes),
        "memory_limit_bytes": rank.memory_watch.memory_limit_bytes,
        "output_bytes_lost": rank.output.lost_bytes,
        "seconds": _rounded(ended - attempt.started),
        **attempt.time_until(ended),
        **_ranks(attempt),
    }


def _ranks(attempt: Attempt) -> dict[str, Any]:
    """Return which of several ranks the record is of, and how each has ended."""
    if len(attempt.ranks) == 1:
        return {}
    return {"rank": attempt.cause.number, "ranks": [_end_of(rank) for rank in attempt.ranks]}


def _end_of(rank: Rank) -> dict[str, Any]:
    error = rank.error()
    return {
        "rank": rank.number,
        **_ending(rank.returncode),
        "step": rank.step,
        "error": f"{error.get('type')}: {error.get('message')}" if error else None,
    }


def _ending(returncode: int | None) -> dict[str, int | None]:
    return {
        "status": returncode if returncode is not None and returncode >= 0 else None,
        "signal": -returncode if returncode is not None and returncode < 0 else None,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
