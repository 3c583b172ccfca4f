"""How long to wait before the next attempt."""

import random

FIRST_DELAY_SECONDS = 0.0
SECOND_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 60.0
JITTER_SECONDS = 0.5
# Far above the longest delay, and far below what a float can hold.
MOST_DOUBLINGS = 16


def delay_seconds(failures: int, *, must_wait: bool = False) -> float:
    """Return the delay after this many failures without progress: none, then 1 s, 2 s, ... 60 s.

    With ``must_wait``, for what is not there yet, the delays are 2 s, 4 s, 8 s, ... 60 s.

    A random jitter keeps runs apart that fail at the same time.
    """
    if must_wait:
        failures += 2
    if failures <= 1:
        return FIRST_DELAY_SECONDS
    doubled = SECOND_DELAY_SECONDS * 2.0 ** min(failures - 2, MOST_DOUBLINGS)
    return min(doubled + random.uniform(0.0, JITTER_SECONDS), LONGEST_DELAY_SECONDS)
