"""Has the kernel kill this process in the middle of a write, in the run's first attempt only."""

import os
import resource
import signal


def arm(largest_bytes: int) -> None:
    """From now on a file that grows beyond this is the end, exactly there."""
    if os.environ.get("ORCHESTRATOR_ATTEMPT") == "1":
        # Python ignores it, and would raise OSError.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, resource.RLIM_INFINITY))


def die() -> None:
    """The end, here."""
    if os.environ.get("ORCHESTRATOR_ATTEMPT") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
