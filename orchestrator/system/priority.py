"""Low priority for background threads, so that they do not slow the training down."""

import contextlib
import os
import threading

from orchestrator.system.capabilities import Capability, is_available

# Linux derives the I/O priority from this value too (ioprio_get(2)).
BACKGROUND_NICE = 10


def lower_priority() -> None:
    """Lower the CPU and disk priority of the calling thread, which cannot be raised again."""
    # Without per-thread priorities the call would lower the whole process.
    if is_available(Capability.THREAD_PRIORITY):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICE)
