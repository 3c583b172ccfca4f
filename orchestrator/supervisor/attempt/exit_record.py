"""The record of an attempt's end: exit.json, and the journal's ``attempt_exited``."""

import contextlib
import time
from typing import Any

from orchestrator.rundir.paths import REAL_PARENTS
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.system.durable import write_json


def write_exit_record(attempt: Attempt, **conclusions: Any) -> dict[str, Any]:
    """Write exit.json and return its content; ``seconds`` is how long the attempt took."""
    record, file = {**_facts(attempt), **conclusions}, attempt.directory.exit_file
    # The journal gets the same record; a full disk must not end the run.
    with contextlib.suppress(OSError):
        write_json(file, record, below=file.parents[REAL_PARENTS])
    return record


def _facts(attempt: Attempt) -> dict[str, Any]:
    loading, final, rank = attempt.loading, attempt.final_snapshot, attempt.main
    returncode = rank.returncode
    return {
        "attempt": attempt.number,
        "status": returncode if returncode is not None and returncode >= 0 else None,
        "signal": -returncode if returncode is not None and returncode < 0 else None,
        "step": attempt.step,
        "epoch": attempt.epoch,
        "phase": None if attempt.adopted else attempt.phase.name.lower(),
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
        "seconds": _rounded((attempt.ended or time.monotonic()) - attempt.started),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
