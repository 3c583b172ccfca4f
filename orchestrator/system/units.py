"""Formats sizes and durations for users, and parses the durations that they write."""

import re

# Longer than any run, and within the range of clocks and timers.
LONGEST_SECONDS = 3650 * 86400.0

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMG])")


def size_text(count: int) -> str:
    """Return a size in the unit that gives one to four digits: 12 B, 3.4 MiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def parse_size(text: str) -> int:
    """Return the bytes in ``100K``, ``64M`` or ``1.5G`` (powers of 1024). Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("write a size such as 100K, 64M or 1G")
    return int(float(match[1]) * 1024 ** "KMG".index(match[2]) * 1024)


def duration_text(seconds: float) -> str:
    """Return a duration for users: 12 s, 3 min 5 s, 2 h 7 min."""
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def parse_duration(text: str) -> float:
    """Return the seconds in ``90s``, ``10m``, ``1.5h`` or ``200ms``. Raises ValueError."""
    match = DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("write a duration such as 90s, 10m or 2h")
    seconds = float(match[1]) * _UNIT_SECONDS[match[2]]
    if seconds > LONGEST_SECONDS:
        raise ValueError(f"at most {LONGEST_SECONDS / _UNIT_SECONDS['d']:g}d")
    return seconds
