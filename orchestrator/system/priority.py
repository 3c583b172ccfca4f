"""Leaving the processor to the training."""

import contextlib
import os
import threading

from orchestrator.system.capabilities import Capability, has

# Of the two that Linux knows, this one lowers the disk's priority too (ioprio_get(2)).
BACKGROUND_NICE = 10


def lower_priority() -> None:
    """Have this thread, which must do nothing else, leave processor and disk to the training."""
    if has(Capability.THREAD_PRIORITY):  # elsewhere this would be the priority of the whole process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICE)
