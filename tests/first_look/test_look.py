"""What a look holds while the script runs."""

import os
import signal
import stat

import pytest

from orchestrator.first_look.look import LookOptions, _locked


@pytest.mark.processes
def test_only_this_user_opens_the_lock_of_a_look() -> None:
    """In a container it alone tells the lifeline of a killed look which processes are its own."""
    umask = os.umask(0o002)
    try:
        with _locked(LookOptions(1.0, 1.0, signal.SIGTERM)) as lock:
            assert stat.S_IMODE(os.fstat(lock).st_mode) == 0o600
    finally:
        os.umask(umask)
