"""Moments as people read them: in the local time of this machine."""

from datetime import datetime
from typing import Any


def local_time_text(moment: Any) -> str:
    """Return a moment in ISO 8601 as local time; empty where it is no moment."""
    try:
        return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, TypeError):
        return ""
