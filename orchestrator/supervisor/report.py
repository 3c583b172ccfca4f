"""The paragraph that people read about a death: where, what is saved, what happens now."""

from typing import Any

from orchestrator.quantities import duration_text, size_text
from orchestrator.supervisor.symptoms import ADVICE, Kind

PHASES = {
    "start": "before its session began",
    "restore": "while restoring",
    "train": "while training",
    "evaluate": "while evaluating",
    "save": "while saving",
    "done": "after the training",
}
_MEMORY_MATTERS = frozenset(
    {Kind.MEMORY_ERROR, Kind.SHARED_MEMORY_FULL, Kind.OOM_KILLED, Kind.KILLED, Kind.WORKER_KILLED}
)


def paragraph(record: dict[str, Any], saved: str, now: str, output: str) -> list[str]:
    """The lines under the cause; ``record`` is exit.json."""
    kind = Kind(record["kind"])
    lines = [_where(record)]
    if kind in _MEMORY_MATTERS:
        lines[0] += f"; {_memory(record)}"
    if advice := ADVICE.get(kind):
        lines.append(advice)
    return [*lines, f"saved: {saved}", f"now: {now}", f"all of its output: {output}"]


def _where(record: dict[str, Any]) -> str:
    if record["loading_step"] is not None:
        return (
            f"attempt {record['attempt']}, while loading the state of step {record['loading_step']}"
        )
    where = f"attempt {record['attempt']}, {PHASES[record['phase']]}"
    if record["since_safe_point_seconds"] is not None:
        ago = duration_text(record["since_safe_point_seconds"])
        where += f", step {record['step']}, {ago} after its last safe point"
    return where


def _memory(record: dict[str, Any]) -> str:
    held = f"its processes held up to {size_text(record['peak_memory_bytes'])} of memory"
    if limit := record["memory_limit_bytes"]:
        held += f", where {size_text(limit)} are allowed"
    return held


def restart_text(delay_seconds: float, failures: int, allowed: int) -> str:
    """What happens now, when that is another attempt."""
    when = "at once" if delay_seconds == 0 else f"in {duration_text(delay_seconds)}"
    return (
        f"starting again {when} (failure {failures} since the last new checkpoint; --max-restarts "
        f"allows {allowed})"
    )
