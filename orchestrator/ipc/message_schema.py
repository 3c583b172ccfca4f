"""The types of the keys in messages that the supervisor receives; everything else is refused here.

A key has one type in every message (docs/reference/process-contract.md).
"""

from orchestrator.ipc.messages import Message

MAXIMUM_COUNT = (1 << 63) - 1

_COUNTS = frozenset(
    {"step", "epoch", "generation", "status", "bytes", "pid", "rank", "world_size", "attempt"}
)
_DURATIONS = frozenset(
    {"seconds", "interval_seconds", "stall_seconds", "cost_seconds", "saving_seconds"}
)
_TEXTS = frozenset(
    {"type", "path", "name", "reason", "problem", "source", "exactness", "cause", "adopted"}
)
# The journal has these keys in every event, and gives them itself.
_OF_JOURNAL = frozenset({"event", "time", "attempt", "uptime_seconds", "asleep_seconds"})


def checked(message: Message) -> Message:
    """Return what a handler may use of a message.

    An absent value may also be null. Raises ValueError for a key with a value of the wrong type.
    """
    if not isinstance(message.get("type"), str):
        raise ValueError("its type is not a text")
    if message["type"] == "hello":
        usable = dict(message)
        usable["attempt"] = _number_of(usable.get("attempt"))
    else:
        # An identifier, since handlers pass facts on as arguments.
        usable = {
            key: value
            for key, value in message.items()
            if key not in _OF_JOURNAL and key.isidentifier() and key != "self"
        }
    for key, value in usable.items():
        if value is not None and not _has_right_type(key, value):
            raise ValueError(f"its {key} has the wrong type")
    return usable


def _has_right_type(key: str, value: object) -> bool:
    if key in _COUNTS:
        return type(value) is int and 0 <= value <= MAXIMUM_COUNT
    if key in _DURATIONS:
        return type(value) in (int, float) and 0 <= value < float("inf")  # type: ignore[operator]
    if key in _TEXTS:
        return isinstance(value, str)
    if key == "metrics":
        return isinstance(value, dict) and all(map(_is_metric, value.values()))
    return True


def _is_metric(value: object) -> bool:
    """Return whether it is a number, or a non-finite one as the text that JSON needs."""
    if isinstance(value, str):
        return value in ("nan", "inf", "-inf")
    return type(value) in (int, float) and abs(value) <= 1.8e308  # type: ignore[arg-type]


def _number_of(text: object) -> object:
    """Return the number of a text of digits, since a trainer may pass on its environment's."""
    return int(text) if isinstance(text, str) and text.isdecimal() and len(text) < 10 else text
