"""The files of a trial, by which its processes and `orchestrator chaos` find each other."""

import os
from pathlib import Path

VARIABLE = "ORCHESTRATOR_BREAKPOINTS"
ARMED_FILE = "armed"
# The path of the trial's directory may be too long for a socket.
SOCKET_LINK = "socket"
HISTORY_FILE = "history.jsonl"
# The armed breakpoints are written and read in one call of this size, so that none is seen halved.
ARMED_BYTES = 256


def trial_directory() -> Path | None:
    """Return the directory of the trial to which this process belongs; None outside of one."""
    return Path(directory) if (directory := os.environ.get(VARIABLE)) else None
