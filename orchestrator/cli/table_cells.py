"""What cells of several tables hold: values as text, and the colour of a state."""

from typing import Any

_STATE_STYLES = {
    "training": "green",
    "completed": "green",
    "failed": "red",
    "interrupted": "red",
    "unreadable": "red",
    "killing": "red",
}


def state_style(state: str) -> str:
    """Return the colour in which a run's state is shown."""
    return _STATE_STYLES.get(state, "yellow")


def cell_text(value: Any) -> str:
    """Return a value as text; an absent one is empty."""
    return "" if value is None else str(value)


def metrics_text(metrics: dict[str, Any]) -> str:
    """Return metrics on one line."""
    return "  ".join(f"{name} {float(value):.6g}" for name, value in (metrics or {}).items())
