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
# As in ipc/messages.py, which this package does not import. Absent where there is one process.
RANK_VARIABLE = "ORCHESTRATOR_RANK"


def rank_of_trainer() -> int:
    """Return which rank this process is; 0 where it is the only one."""
    return int(os.environ.get(RANK_VARIABLE, "0"))


def trial_directory() -> Path | None:
    """Return the directory of the trial to which this process belongs; None outside of one."""
    return Path(directory) if (directory := os.environ.get(VARIABLE)) else None
