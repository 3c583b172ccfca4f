"""What a person should look at in a run, in sentences."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from orchestrator.rundir.journal import JournalEvent

# An event of each kind, and the fact of its newest one that says why.
_TOLD = {
    JournalEvent.CHECKPOINT_FAILED: ("a save failed", "problem"),
    JournalEvent.CHECKPOINT_QUARANTINED: ("a checkpoint was moved to quarantine", "reason"),
    JournalEvent.EXACTNESS_LOST: ("the run is no longer exact", "exactness"),
    JournalEvent.REPLICAS_DIFFER: ("the ranks held different values", "tensors"),
    JournalEvent.HANG_DETECTED: ("the trainer showed no sign of life", "seems"),
    JournalEvent.STALLED: ("no checkpoint came for long", "reason"),
    JournalEvent.GAVE_UP: ("the run gave up", "reason"),
}


def remarks(status: dict[str, Any], events: Iterable[dict[str, Any]]) -> list[str]:
    """Return a sentence for each thing that is not as it should be; empty where all is well."""
    counts: Counter[str] = Counter()
    newest: dict[str, Any] = {}
    not_finite = failed = 0
    for event in events:
        if event["event"] in _TOLD:
            counts[event["event"]] += 1
            newest[event["event"]] = _words(event.get(_TOLD[event["event"]][1]))
        not_finite += event.get("healthy") is False
        failed += event.get("outcome") == "failed"
    found = [_sentence(name, counts[name], newest[name]) for name in _TOLD if counts[name]]
    if not_finite:
        found.append(f"a checkpoint has values that are not finite{_times(not_finite)}")
    if failed:
        found.append(f"an attempt failed{_times(failed)}: the table below says how")
    if status["problem"]:
        found.append(f"now: {status['problem']}")
    return found


def _words(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _times(count: int) -> str:
    return "" if count == 1 else f", {count} times"


def _sentence(name: JournalEvent, count: int, why: Any) -> str:
    newest = "" if why is None else f"; the last time: {why}" if count > 1 else f": {why}"
    return f"{_TOLD[name][0]}{_times(count)}{newest}"
