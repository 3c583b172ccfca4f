"""GPU memory of processes that have ended: the driver gives it back a moment after their end.

A trainer that starts before that meets an out-of-memory error which no state of ours explains.
"""

import shutil
import subprocess
import time
from collections.abc import Collection

QUERY = ("nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader")
QUERY_SECONDS = 10.0
POLL_SECONDS = 0.2


def wait_until_released(pids: Collection[int], timeout_seconds: float) -> set[int]:
    """Wait until no GPU is in use by any of these processes, at most so long; those that still are.

    Where there is no nvidia-smi, or it does not answer, nothing is known and nothing waited for.
    """
    if shutil.which(QUERY[0]) is None:
        return set()
    deadline = time.monotonic() + timeout_seconds
    while (left := _users() & set(pids)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return left


def _users() -> set[int]:
    """Processes that nvidia-smi shows on any GPU."""
    try:
        answer = subprocess.run(
            QUERY, capture_output=True, text=True, timeout=QUERY_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return {int(line) for line in answer.stdout.split() if line.isdecimal()}
