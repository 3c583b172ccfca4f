"""Checks what a supervisor says of its run, before it is shown: root asks those of other users."""

import math
from typing import Any, TypeGuard

from orchestrator.rundir.time_ledger import Part

# Of each key: the type of its value, and what stands for an absent one.
Shape = dict[str, tuple[type, Any]]

_COUNT: tuple[type, Any] = (int, None)
_NUMBER: tuple[type, Any] = (float, None)
_TEXT: tuple[type, Any] = (str, None)
LARGEST_NUMBER = 1e15

_STATUS: Shape = {
    **dict.fromkeys(("run_id", "state", "run_dir"), (str, "")),
    **dict.fromkeys(("supervisor_pid", "trainer_pid", "spare_pid"), _COUNT),
    **dict.fromkeys(("attempt", "epoch", "step", "trained_steps"), _COUNT),
    "restarts": (int, 0),
    **dict.fromkeys(("phase", "problem"), _TEXT),
    **dict.fromkeys(("silent_seconds", "hang_budget_seconds"), _NUMBER),
    **dict.fromkeys(("lose_at_most_seconds", "machine_loses_at_most_seconds"), _NUMBER),
}
_PARTS: dict[str, Shape] = {
    "spare": {"state": (str, ""), "reason": _TEXT, "bytes": _COUNT},
    "newest_checkpoint": {"path": (str, ""), "step": (int, 0), "age_seconds": (float, 0.0)},
    "newest_snapshot": {"step": (int, 0), "age_seconds": (float, 0.0)},
    "snapshots": {
        **dict.fromkeys(("interval_seconds", "stall_seconds", "write_seconds"), _NUMBER),
        "failure_seconds": _NUMBER,
        "bytes": _COUNT,
    },
    "failure": {
        **dict.fromkeys(("status", "attempt", "step"), _COUNT),
        "times": (int, 0),
        **dict.fromkeys(("cause", "reason", "kind", "output", "last_line"), _TEXT),
    },
}
_PROGRESS: Shape = {
    **dict.fromkeys(("step", "total_steps", "epoch", "total_epochs"), _COUNT),
    **dict.fromkeys(("percent", "steps_per_second", "seconds_left"), _NUMBER),
}
_SECONDS: Shape = dict.fromkeys(Part, (float, 0.0))
_RANK: Shape = {**dict.fromkeys(("rank", "pid", "step"), (int, 0)), "state": (str, "")}


def checked_status(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a supervisor's status with the keys that this version knows, and no others.

    A supervisor of another version may lack some, or have more. Raises ValueError for a value of a
    wrong type.
    """
    status = _checked(reply, _STATUS)
    for key, shape in _PARTS.items():
        part = reply.get(key)
        if not isinstance(part, dict | None):
            raise ValueError(f"its {key} has the wrong type")
        status[key] = None if part is None else _checked(part, shape)
    progress = reply.get("progress") or {key: reply.get(key) for key in ("step", "epoch")}
    if not isinstance(progress, dict):
        raise ValueError("its progress has the wrong type")
    status["progress"] = _checked(progress, _PROGRESS)
    status["goodput"] = _checked_goodput(reply.get("goodput") or {})
    ranks = reply.get("ranks") or []
    if not isinstance(ranks, list) or not all(isinstance(rank, dict) for rank in ranks):
        raise ValueError("its ranks have the wrong type")
    status["ranks"] = [_checked(rank, _RANK) for rank in ranks] or None
    kinds = reply.get("restarts_by_kind") or {}
    if not isinstance(kinds, dict) or not all(map(_is_count, kinds.values())):
        raise ValueError("its restarts_by_kind have the wrong type")
    metrics = reply.get("metrics") or {}
    if not isinstance(metrics, dict) or not all(map(_is_metric, metrics.values())):
        raise ValueError("its metrics have the wrong type")
    return status | {"restarts_by_kind": kinds, "metrics": metrics}


def _checked_goodput(goodput: Any) -> dict[str, Any]:
    if not isinstance(goodput, dict):
        raise ValueError("its goodput has the wrong type")
    seconds, attempts = goodput.get("seconds") or {}, goodput.get("attempts") or []
    shares = [seconds, *attempts] if isinstance(attempts, list) else [None]
    if not all(isinstance(share, dict) for share in shares):
        raise ValueError("its goodput has the wrong type")
    if not all(isinstance(share.get("seconds") or {}, dict) for share in attempts):
        raise ValueError("its goodput has the wrong type")
    return {
        **_checked(goodput, {"percent": _NUMBER, "wall_seconds": (float, 0.0)}),
        "seconds": _checked(seconds, _SECONDS),
        "attempts": [
            {
                **_checked(share, {"attempt": _COUNT}),
                "seconds": _checked(share.get("seconds") or {}, _SECONDS),
            }
            for share in attempts
        ],
    }


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a number that a message may show or a command may wait for."""
    return type(value) in (int, float) and abs(value) < LARGEST_NUMBER  # type: ignore[arg-type]


def _checked(content: dict[str, Any], shape: Shape) -> dict[str, Any]:
    checked = {}
    for key, (kind, absent) in shape.items():
        value = content.get(key)
        is_right = isinstance(value, str) if kind is str else is_number(value)
        if value is not None and (not is_right or (kind is int and type(value) is not int)):
            raise ValueError(f"its {key} has the wrong type")
        checked[key] = absent if value is None else value
    return checked


def _is_count(value: object) -> bool:
    return type(value) is int and is_number(value)


def _is_metric(value: object) -> bool:
    if isinstance(value, str):  # JSON has no other form for these
        return value in ("nan", "inf", "-inf")
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
